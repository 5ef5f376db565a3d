// Runs the CPU kernels' library for a Python process that cannot load it: one built for another architecture, emulated.
//
// Calls come in over a pipe, by name and with their arguments as they are, pointers included. An address means the same
// here as there: a page that a kernel touches is fetched when it is first touched (the handler of SIGSEGV asks for it,
// over the other pipe) and mapped at its own address from memory that both processes share. When the call returns, the
// other side takes what was changed and the pages are dropped. So the driver knows nothing of what the kernels take.
#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

namespace {

constexpr uintptr_t kPage = 4096;
constexpr size_t kTable = 1 << 20;  // pages of one call: 4 GiB

enum Result : int64_t { kNothing, kInt32, kInt64, kDouble, kText };
enum Message : int64_t { kWantsPage, kReturns, kUnknown };

struct Call {
    char name[64];
    int64_t arguments[8];
    int64_t result;
};
struct Told {
    int64_t message, value;
    char text[48];
};
struct Pages {
    int64_t slot, count;  // in the shared memory; count 0: the address is not a page there
};

int shared = -1;
std::atomic<int> busy{0};
uintptr_t mapped[kTable];  // an open hash table of page addresses
size_t used[kTable], count_of_used = 0;  // its places
std::atomic<bool> in_call{false};

void must(bool good, const char* what) {
    if (good) return;
    perror(what);
    _exit(3);
}

void tell(const Told& told) { must(write(STDOUT_FILENO, &told, sizeof told) == sizeof told, "driver: write"); }

template <class T>
bool hear(T& heard) {
    size_t got = 0;
    while (got < sizeof heard) {
        const ssize_t n = read(STDIN_FILENO, reinterpret_cast<char*>(&heard) + got, sizeof heard - got);
        if (n <= 0) return false;
        got += static_cast<size_t>(n);
    }
    return true;
}

// The place of a page in the table: its own, or the first free one.
size_t place_of(uintptr_t page) {
    size_t at = page / kPage * 0x9E3779B97F4A7C15u >> 44;
    while (mapped[at] && mapped[at] != page) at = (at + 1) % kTable;
    return at;
}

void fetch(int, siginfo_t* info, void*) {
    const uintptr_t page = reinterpret_cast<uintptr_t>(info->si_addr) / kPage * kPage;
    if (!in_call || !page) {
        fprintf(stderr, "driver: a kernel touched %p outside of a call\n", info->si_addr);
        _exit(4);
    }
    while (busy.exchange(1)) sched_yield();  // threads fault at once; one pipe serves them
    if (!mapped[place_of(page)]) {
        Pages pages;
        tell({kWantsPage, static_cast<int64_t>(page), {}});
        must(hear(pages), "driver: read");
        if (!pages.count) {
            fprintf(stderr, "driver: a kernel touched %p, which is no memory of its caller\n", info->si_addr);
            _exit(4);
        }
        void* at = mmap(reinterpret_cast<void*>(page), static_cast<size_t>(pages.count) * kPage, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED, shared, pages.slot * static_cast<int64_t>(kPage));
        must(at == reinterpret_cast<void*>(page), "driver: mmap");
        for (int64_t i = 0; i < pages.count; ++i) {
            const size_t place = place_of(page + i * kPage);
            mapped[place] = page + i * kPage;
            used[count_of_used++] = place;
        }
    }
    busy = 0;
}

void drop_pages() {
    for (size_t i = 0; i < count_of_used; ++i) {
        munmap(reinterpret_cast<void*>(mapped[used[i]]), kPage);
        mapped[used[i]] = 0;
    }
    count_of_used = 0;
}

Told run(void* function, const Call& call) {
    const int64_t* a = call.arguments;
    Told told = {kReturns, 0, {}};
    in_call = true;
    if (call.result == kDouble) {
        const double value = reinterpret_cast<double (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                                         int64_t)>(function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        memcpy(&told.value, &value, sizeof value);
    } else {
        told.value = reinterpret_cast<int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                                  int64_t)>(function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
    }
    in_call = false;
    if (call.result == kText) {
        const auto* text = reinterpret_cast<const char*>(told.value);
        told.value = text != nullptr;
        if (text) strncpy(told.text, text, sizeof told.text - 1);
    }
    return told;
}

}  // namespace

// driver LIBRARY SHARED_MEMORY_FD
int main(int count, char** arguments) {
    if (count != 3) return 2;
    shared = atoi(arguments[2]);
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "driver: %s\n", dlerror());
        return 2;
    }
    struct sigaction action = {};
    action.sa_sigaction = fetch;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    must(sigaction(SIGSEGV, &action, nullptr) == 0, "driver: sigaction");
    Call call;
    while (hear(call)) {
        void* function = dlsym(library, call.name);
        const Told told = function ? run(function, call) : Told{kUnknown, 0, {}};
        drop_pages();
        tell(told);
    }
    return 0;
}
