// The router of a mixture of experts, in float32 with exponentials rounded from float64.
#include "gallium/route.h"

#include <math.h>

#include "rows.h"

namespace {

float sigmoid(float x) { return static_cast<float>(1.0 / (1.0 + exp(-static_cast<double>(x)))); }

void score_row(const ga_route_args& a, const float* logits, float* scores) {
    if (!a.softmax) {
        for (int64_t e = 0; e < a.experts; ++e) scores[e] = sigmoid(logits[e]);
        return;
    }
    float highest = logits[0];
    for (int64_t e = 1; e < a.experts; ++e) highest = logits[e] > highest ? logits[e] : highest;
    double sum = 0.0;
    for (int64_t e = 0; e < a.experts; ++e) sum += exp(static_cast<double>(logits[e]) - highest);
    for (int64_t e = 0; e < a.experts; ++e)
        scores[e] = static_cast<float>(exp(static_cast<double>(logits[e]) - highest) / sum);
}

// The index of the largest of n values that are not yet taken, ties to the lower; marks it taken.
int64_t take_best(const float* values, uint8_t* taken, int64_t n) {
    int64_t best = 0;
    while (best < n - 1 && taken[best]) ++best;
    for (int64_t i = best + 1; i < n; ++i)
        if (!taken[i] && values[i] > values[best]) best = i;
    taken[best] = 1;
    return best;
}

// Sets `choice` of the experts outside the best groups to minus infinity.
void keep_groups(const ga_route_args& a, float* choice, float* sums, uint8_t* taken) {
    const int64_t size = a.experts / a.groups;
    for (int64_t g = 0; g < a.groups; ++g) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t i = g * size; i < (g + 1) * size; ++i) {
            if (choice[i] > first) {
                second = first;
                first = choice[i];
            } else if (choice[i] > second) {
                second = choice[i];
            }
        }
        sums[g] = size > 1 ? first + second : first;
        taken[g] = 0;
    }
    for (int64_t i = 0; i < a.top_groups; ++i) take_best(sums, taken, a.groups);
    for (int64_t e = 0; e < a.experts; ++e)
        if (!taken[e / size]) choice[e] = -INFINITY;
}

constexpr int64_t kMaxExperts = 4096;  // checked by the caller; keeps the row's scratch on the stack

void route_row(const ga_route_args& a, int64_t token) {
    float scores[kMaxExperts], choice[kMaxExperts], sums[kMaxExperts];
    uint8_t taken[kMaxExperts];
    score_row(a, a.logits + token * a.stride, scores);
    for (int64_t e = 0; e < a.experts; ++e) choice[e] = scores[e] + a.bias[e];
    if (a.top_groups < a.groups) keep_groups(a, choice, sums, taken);
    for (int64_t e = 0; e < a.experts; ++e) taken[e] = 0;
    float* weights = a.weights + token * a.top_k;
    int32_t* ids = a.ids + token * a.top_k;
    float sum = 0.0f;
    for (int64_t i = 0; i < a.top_k; ++i) {
        ids[i] = static_cast<int32_t>(take_best(choice, taken, a.experts));
        weights[i] = scores[ids[i]];
        sum += weights[i];
    }
    const float scale = static_cast<float>(a.scale);
    for (int64_t i = 0; i < a.top_k; ++i) {
        if (a.renormalize) weights[i] = weights[i] / (sum + 1e-20f);
        weights[i] *= scale;
    }
}

}  // namespace

void ga_route(const ga_route_args* args) {
    const ga_route_args a = *args;
    ga::for_rows(a.tokens, a.experts * (a.top_k + 16), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) route_row(a, t);
    });
}
