// What an engine's operations compute, for one instruction set.  Included once for each of them (engine.cpp), inside a
// namespace, with the compiler told what it may use.  64-byte vectors are one register with AVX-512, two with AVX2, four
// with SSE or NEON; only the product of four bytes is written for each.
//
// Each row's result is computed in the same order whatever the other rows are, so a song doesn't depend on its batch.

INLINE Floats splat(float x) { return Floats{} + x; }
INLINE Floats load(const float* x) { return *reinterpret_cast<const FloatsAt*>(x); }
INLINE void store(float* x, Floats v) { *reinterpret_cast<FloatsAt*>(x) = v; }
#if defined(TUNESMITH_VNNI)  // bfloat16 is the upper half of a float32
INLINE Floats load(const Half* x) {
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16);
}
#elif defined(TUNESMITH_AVX2)
INLINE Floats load(const Half* x) {
    Floats y;
    for (int i = 0; i < 2; ++i)
        ((__m256i*)&y)[i] = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x + i)), 16);
    return y;
}
#else
INLINE Floats load(const Half* x) {
    return (Floats)(__builtin_convertvector(*reinterpret_cast<const HalvesAt*>(x), Words) << 16);
}
#endif

template <class T>
INLINE Floats load_some(const T* x, int count) {  // zeros after them
    if (count == LANES) return load(x);
    T whole[LANES] = {};
    __builtin_memcpy(whole, x, count * sizeof(T));
    return load(whole);
}
INLINE void store_some(float* x, Floats v, int count) {
    if (count == LANES) store(x, v);
    else __builtin_memcpy(x, &v, count * sizeof(float));
}

INLINE float sum(Floats v) {
    float s = 0;
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) v[i] += v[i + half];
    s = v[0];
    return s;
}
INLINE float largest(Floats v) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) v[i] = v[i + half] > v[i] ? v[i + half] : v[i];
    return v[0];
}
#if defined(TUNESMITH_VNNI)
INLINE Floats clamp(Floats x, float low, float high) {
    return (Floats)_mm512_min_ps((__m512)splat(high), _mm512_max_ps((__m512)splat(low), (__m512)x));
}
#else
INLINE Floats clamp(Floats x, float low, float high) {
    x = x < low ? splat(low) : x;
    return x > high ? splat(high) : x;
}
#endif

// exp to 1e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
INLINE Floats exponential(Floats x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    x = clamp(x, -87.0f, 88.0f);
    Floats shifted = x * 1.44269504f + magic, n = shifted - magic;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
                1.6666665459e-1f) * r + 5.0000001201e-1f;
    Floats y = p * r * r + r + 1.0f;
    return (Floats)((Integers)y + (((Integers)shifted - (Integers)splat(magic)) << 23));
}

// erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
INLINE Floats error_function(Floats x) {
    Floats a = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.3275911f * a);
    Floats p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    Floats y = 1.0f - p * exponential(-a * a);
    return x < 0 ? -y : y;
}

INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE Floats activate(Floats x, int kind) {
    switch (kind) {
        case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
        case RELU: return x > 0 ? x : Floats{};
        case SILU: return x / (1.0f + exponential(-x));
        case ELU: return x > 0 ? x : exponential(x) - 1.0f;
        case QUICK_GELU: return x / (1.0f + exponential(-1.702f * x));
        case GELU_TANH: {
            Floats u = 1.5957691216f * (x + 0.044715f * x * x * x);  // x * sigmoid(2 u') is 0.5 x (1 + tanh u')
            return x / (1.0f + exponential(-u));
        }
        default: return x;
    }
}

struct Share { int begin, end; };
// A thread's part of `count` things, in whole multiples of `unit`.
INLINE Share share(int count, int unit, const Job& job) {
    int64_t units = (count + unit - 1) / unit;
    int begin = (int)(units * job.thread / job.threads) * unit, end = (int)(units * (job.thread + 1) / job.threads) * unit;
    return {begin, end < count ? end : count};
}

// ---- norm and quantisation ------------------------------------------------------------------------------------------

INLINE void quantise_group(const float* x, int count, int8_t* q, float* scale, int32_t* total) {
    Floats peak{};
    int k = 0;
    for (; k + LANES <= count; k += LANES) {
        Floats v = load(x + k), a = v < 0 ? -v : v;
        peak = a > peak ? a : peak;
    }
    float top = largest(peak);
    for (; k < count; ++k) top = __builtin_fabsf(x[k]) > top ? __builtin_fabsf(x[k]) : top;
    const float magic = 12582912.0f;
    float by = top > 0 ? 127.0f / top : 0.0f;
    int32_t s = 0;
    for (k = 0; k < count; ++k) {
        int8_t v = (int8_t)(int32_t)((x[k] * by + magic) - magic);
        q[k] = v;
        s += v;
    }
    for (; k & 3; ++k) q[k] = 0;  // products are of four at a time
    *scale = top / 127.0f;
    *total = s;
}

INLINE void quantise_row(const Op& op, const float* x, int row, int first, int last) {
    int groups = (op.in + GROUP - 1) / GROUP;
    for (int g = first; g < last; ++g) {
        int count = op.in - g * GROUP < GROUP ? op.in - g * GROUP : GROUP;
        int64_t at = (int64_t)row * groups + g;
        quantise_group(x + g * GROUP, count, op.bytes + at * GROUP, op.byte_scales + at, op.byte_sums + at);
    }
}

static void quantise(const Op& op, const Job& job) {
    int groups = (op.in + GROUP - 1) / GROUP;
    Share mine = share(job.rows * groups, 1, job);
    for (int i = mine.begin; i < mine.end; ++i) {
        int row = i / groups, g = i % groups;
        quantise_row(op, op.source + (int64_t)row * op.in, row, g, g + 1);
    }
}

static void norm(const Op& op, const Job& job) {
    Share mine = share(job.rows, 1, job);
    int n = op.in, whole = n / LANES * LANES;
    for (int row = mine.begin; row < mine.end; ++row) {
        const float* x = op.source + (int64_t)row * n;
        float* y = op.target + (int64_t)row * n;
        Floats s{}, s2{};
        float mean = 0, square = 0;
        for (int k = 0; k < whole; k += LANES) s += load(x + k);
        for (int k = whole; k < n; ++k) mean += x[k];
        mean = (mean + sum(s)) / n;
        for (int k = 0; k < whole; k += LANES) { Floats d = load(x + k) - mean; s2 += d * d; }
        for (int k = whole; k < n; ++k) square += (x[k] - mean) * (x[k] - mean);
        float by = 1.0f / __builtin_sqrtf((square + sum(s2)) / n + op.epsilon);
        for (int k = 0; k < whole; k += LANES) store(y + k, (load(x + k) - mean) * by * load(op.gain + k) + load(op.bias + k));
        for (int k = whole; k < n; ++k) y[k] = (x[k] - mean) * by * op.gain[k] + op.bias[k];
        if (op.bytes) quantise_row(op, y, row, 0, (n + GROUP - 1) / GROUP);
    }
}

#include "products.h"
#include "attention.h"
#include "choice.h"

// An LSTM's step: gates in, forget, cell, out [4 * in] of each row, the cells `raw`, what comes out `target`, and
// quantised `bytes`.
static void gates(const Op& op, const Job& job) {
    Share mine = share(op.in, op.bytes ? GROUP : LANES, job);
    for (int row = 0; row < job.rows; ++row) {
        for (int k = mine.begin; k < mine.end; k += LANES) {
            int left = mine.end - k < LANES ? mine.end - k : LANES;
            Floats g[4];
            for (int i = 0; i < 4; ++i) g[i] = load_some(op.source + ((int64_t)row * 4 + i) * op.in + k, left);
            float* cell = op.raw + (int64_t)row * op.in + k;
            Floats c = sigmoid(g[1]) * load_some(cell, left) + sigmoid(g[0]) * (2.0f * sigmoid(2.0f * g[2]) - 1.0f);
            store_some(cell, c, left);
            store_some(op.target + (int64_t)row * op.in + k, sigmoid(g[3]) * (2.0f * sigmoid(2.0f * c) - 1.0f), left);
        }
        if (op.bytes) quantise_row(op, op.target + (int64_t)row * op.in, row, mine.begin / GROUP, (mine.end + GROUP - 1) / GROUP);
    }
}

static void execute(const Op& op, const Job& whole, float* scratch) {
    Job job = whole;
    if (op.rows) job.rows = op.rows > 0 ? op.rows : *job.views[op.view].leading;
    switch (op.kind) {
        case NORM: norm(op, job); break;
        case QUANTISE: quantise(op, job); break;
        case LINEAR: linear(op, job); break;
        case GATES: gates(op, job); break;
        case CHOOSE: choose(op, job, scratch); break;
        default:
            switch (op.format) {
                case FLOAT32: attention<float>(op, job, scratch); break;
                case BFLOAT16: attention<Half>(op, job, scratch); break;
                default: attention<int8_t>(op, job, scratch); break;
            }
    }
}
