// A mixture of experts: tokens are sorted by expert, so that each expert's weights are read once per step.
#include <string.h>

#include <new>
#include <vector>

#include "linear.h"
#include "pool.h"
#include "rows.h"

namespace ga {
namespace {

// One expert's part of the work: its rows among the sorted ones.
struct Share {
    int32_t expert;
    int64_t begin, end;
};

class Mixture {
public:
    explicit Mixture(const ga_experts_args& args)
        : a(args), rows_(args.tokens * args.top_k), hidden_(args.gate_up[0].cols), width_(args.down[0].cols) {}

    bool run() {
        if (a.tokens == 0) return true;
        sort();
        thread_local Buffer buffer;
        thread_local Prepared prepared;
        auto* inputs = reinterpret_cast<float*>(
            buffer.get(static_cast<size_t>(rows_ * (2 * hidden_ + 3 * width_)) * sizeof(float)));
        if (!inputs) return false;
        float* gate_up = inputs + rows_ * hidden_;
        float* inner = gate_up + rows_ * 2 * width_;
        float* outputs = inner + rows_ * width_;
        for_rows(rows_, hidden_, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
                memcpy(inputs + r * hidden_, a.x + order_[r] / a.top_k * a.x_stride,
                       static_cast<size_t>(hidden_) * sizeof(float));
        });
        Activations x;
        if (!prepared.prepare(inputs, rows_, hidden_, a.gate_up[0], x)) return false;
        multiply(a.gate_up, x, gate_up, 2 * width_);
        swiglu_rows(gate_up, inner, rows_, width_);
        if (!prepared.prepare(inner, rows_, width_, a.down[0], x)) return false;
        multiply(a.down, x, outputs, hidden_);
        combine(outputs);
        return true;
    }

private:
    // order_[sorted row] = token * top_k + choice; place_ is its inverse.
    void sort() {
        std::vector<int64_t> start(static_cast<size_t>(a.experts) + 1, 0);
        for (int64_t i = 0; i < rows_; ++i) ++start[static_cast<size_t>(a.ids[i]) + 1];
        for (int64_t e = 0; e < a.experts; ++e) {
            if (start[e + 1]) shares_.push_back({static_cast<int32_t>(e), start[e], start[e] + start[e + 1]});
            start[e + 1] += start[e];
        }
        order_.resize(static_cast<size_t>(rows_));
        place_.resize(static_cast<size_t>(rows_));
        for (int64_t i = 0; i < rows_; ++i) {
            const int64_t row = start[a.ids[i]]++;
            order_[row] = i;
            place_[i] = row;
        }
    }

    void multiply(const ga_matrix* matrices, const Activations& x, float* y, int64_t y_stride) const {
        const int64_t panels = panels_of(matrices[0]);
        const int64_t step = panels_per_task(panels, static_cast<int64_t>(shares_.size()));
        const int64_t per_expert = (panels + step - 1) / step;
        const Product product = product_for(matrices[0]);
        parallel(per_expert * static_cast<int64_t>(shares_.size()), [&](int task, int) {
            const Share& share = shares_[static_cast<size_t>(task / per_expert)];
            const int64_t begin = task % per_expert * step, end = begin + step < panels ? begin + step : panels;
            product(matrices[share.expert], x, {share.begin, share.end, begin, end, y, y_stride});
        });
    }

    // A token's sum goes in the order of its choices, whatever the order of the experts.
    void combine(const float* outputs) const {
        for_rows(a.tokens, hidden_ * a.top_k, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                float* y = a.y + t * hidden_;
                for (int64_t k = 0; k < hidden_; ++k) y[k] = 0.0f;
                for (int64_t i = 0; i < a.top_k; ++i) {
                    const float* from = outputs + place_[t * a.top_k + i] * hidden_;
                    const float weight = a.weights[t * a.top_k + i];
                    for (int64_t k = 0; k < hidden_; ++k) y[k] += weight * from[k];
                }
            }
        });
    }

    const ga_experts_args& a;
    const int64_t rows_, hidden_, width_;
    std::vector<Share> shares_;
    std::vector<int64_t> order_, place_;
};

}  // namespace
}  // namespace ga

int32_t ga_experts(const ga_experts_args* args) {
    try {
        return ga::Mixture(*args).run() ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
