// A mixture of experts: tokens are sorted by expert, so that each expert's weights are read once per step. A shared
// expert that all tokens pass is one part more of the same two jobs.
#include <algorithm>
#include <new>
#include <vector>

#include "gated.h"
#include "rows.h"

namespace ga {
namespace {

// One expert's part of the work: its rows among the sorted ones.
struct Share {
    int32_t expert;
    int64_t begin, end;
};

// What one thread keeps between calls.
struct Scratch {
    Prepared tokens, sorted, shared_tokens;
    Inner inner, shared_inner;
    Buffer outputs;
};

class Mixture {
public:
    explicit Mixture(const ga_experts_args& args)
        : a(args), rows_(args.tokens * args.top_k), hidden_(args.down[0].rows), shared_(args.shared_gate_up != nullptr) {}

    bool run() {
        if (a.tokens == 0) return true;
        sort();
        thread_local Scratch scratch;
        auto* outputs = reinterpret_cast<float*>(
            scratch.outputs.get(static_cast<size_t>((rows_ + (shared_ ? a.tokens : 0)) * hidden_) * sizeof(float)));
        Activations sorted, shared, inner, shared_inner;
        if (!outputs || !prepare(scratch, sorted, shared)) return false;
        std::vector<GatedPart> first;
        if (shared_) first.push_back({a.shared_gate_up, &shared, 0, a.tokens, &scratch.shared_inner});
        for (const Share& s : shares_) first.push_back({a.gate_up + s.expert, &sorted, s.begin, s.end, &scratch.inner});
        if (!multiply_gated(first)) return false;
        if (!scratch.inner.finish(a.down[0], inner)) return false;
        if (shared_ && !scratch.shared_inner.finish(*a.shared_down, shared_inner)) return false;
        std::vector<Part> second;
        float* apart = outputs + rows_ * hidden_;
        if (shared_) second.push_back({a.shared_down, &shared_inner, 0, a.tokens, apart, hidden_});
        for (const Share& s : shares_) second.push_back({a.down + s.expert, &inner, s.begin, s.end, outputs, hidden_});
        multiply(second);
        combine(outputs, shared_ ? apart : nullptr);
        return true;
    }

private:
    // source_[sorted row] = token; place_[token * top_k + choice] = sorted row. Experts with many rows come first, so that
    // no thread begins with the longest task when the others are done.
    void sort() {
        std::vector<int64_t> start(static_cast<size_t>(a.experts) + 1, 0);
        for (int64_t i = 0; i < rows_; ++i) ++start[static_cast<size_t>(a.ids[i]) + 1];
        for (int64_t e = 0; e < a.experts; ++e) {
            if (start[e + 1]) shares_.push_back({static_cast<int32_t>(e), start[e], start[e] + start[e + 1]});
            start[e + 1] += start[e];
        }
        std::stable_sort(shares_.begin(), shares_.end(),
                         [](const Share& s, const Share& t) { return s.end - s.begin > t.end - t.begin; });
        source_.resize(static_cast<size_t>(rows_));
        place_.resize(static_cast<size_t>(rows_));
        for (int64_t i = 0; i < rows_; ++i) {
            const int64_t row = start[a.ids[i]]++;
            source_[row] = i / a.top_k;
            place_[i] = row;
        }
    }

    // Every token is prepared once, whatever the number of experts it meets.
    bool prepare(Scratch& scratch, Activations& sorted, Activations& shared) const {
        const ga_matrix& like = a.gate_up[0];
        Activations tokens;
        if (!scratch.tokens.prepare(a.x, a.tokens, a.x_stride, like, tokens)) return false;
        if (!scratch.sorted.gather(tokens, source_.data(), rows_, like, sorted)) return false;
        if (!scratch.inner.reserve(rows_, a.down[0])) return false;
        if (!shared_) return true;
        shared = tokens;
        const bool alike = a.shared_gate_up->kind == like.kind && !a.shared_gate_up->integers && !like.integers;
        if (!alike && !scratch.shared_tokens.prepare(a.x, a.tokens, a.x_stride, *a.shared_gate_up, shared)) return false;
        return scratch.shared_inner.reserve(a.tokens, *a.shared_down);
    }

    // A token's sum goes in the order of its choices, whatever the order of the experts; the shared expert is last.
    void combine(const float* outputs, const float* apart) const {
        for_rows(a.tokens, hidden_ * a.top_k, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                float* y = a.y + t * hidden_;
                for (int64_t k = 0; k < hidden_; ++k) y[k] = 0.0f;
                for (int64_t i = 0; i < a.top_k; ++i) {
                    const float* from = outputs + place_[t * a.top_k + i] * hidden_;
                    const float weight = a.weights[t * a.top_k + i];
                    for (int64_t k = 0; k < hidden_; ++k) y[k] += weight * from[k];
                }
                if (!apart) continue;
                for (int64_t k = 0; k < hidden_; ++k) y[k] += apart[t * hidden_ + k];
            }
        });
    }

    const ga_experts_args& a;
    const int64_t rows_, hidden_;
    const bool shared_;
    std::vector<Share> shares_;
    std::vector<int64_t> source_, place_;
};

}  // namespace
}  // namespace ga

int32_t ga_experts(const ga_experts_args* args) {
    for (int64_t i = 0; i < args->tokens * args->top_k; ++i)
        if (args->ids[i] < 0 || args->ids[i] >= args->experts) return 2;
    try {
        return ga::Mixture(*args).run() ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
