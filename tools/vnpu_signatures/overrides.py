"""What neither the wheel nor the call sites say, decided by hand, each with its reason."""

# Name → (number of arguments of the right call, why the other call is not believed).
VARIANTS: dict[str, tuple[int, str]] = {}

# Name → (parameter names, source): functions of which the wheel gives the types and the sources no call.
NAMES: dict[str, tuple[str, str]] = {}
