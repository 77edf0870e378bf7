// What an engine's operations compute, for one instruction set.  Included once for each of them (engine.cpp), inside a
// namespace, with the compiler told what it may use.  64-byte vectors are one register with AVX-512, two with AVX2, four
// with SSE or NEON; only the product of four bytes is written for each.
//
// Each row's result is computed in the same order whatever the other rows are, so a song doesn't depend on its batch.

#if defined(TUNESMITH_VNNI)  // rows that a product takes at a time: as many sums as there are registers
#define TILE 12
#define MANY 8
#elif defined(TUNESMITH_AVX2)
#define TILE 3
#define MANY 4
#else
#define TILE 2
#define MANY 4
#endif

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

// ---- products -------------------------------------------------------------------------------------------------------

// R rows times O of the weight's rows, both as they lie in memory.
template <class T, int R, int O>
INLINE void dots(const Op& op, int row, int out) {
    const float* x = op.source + (int64_t)row * op.in;
    const T* w = (const T*)op.weight + (int64_t)out * op.in;
    Floats total[R][O] = {};
    int k = 0;
    for (; k + LANES <= op.in; k += LANES) {
        Floats v[O];
        for (int o = 0; o < O; ++o) {
            v[o] = load(w + (int64_t)o * op.in + k);
            __builtin_prefetch(w + (int64_t)(o + O) * op.in + k);  // what is read next
        }
        for (int r = 0; r < R; ++r) {
            Floats u = load(x + (int64_t)r * op.in + k);
            for (int o = 0; o < O; ++o) total[r][o] += u * v[o];
        }
    }
    if (int left = op.in - k)
        for (int r = 0; r < R; ++r)
            for (int o = 0; o < O; ++o)
                total[r][o] += load_some(x + (int64_t)r * op.in + k, left) * load_some(w + (int64_t)o * op.in + k, left);
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) op.raw[(int64_t)(row + r) * op.out + out + o] = sum(total[r][o]);
}

template <class T, int O>
INLINE void dot_rows(const Op& op, int rows, int out) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) dots<T, 4, O>(op, row, out);
    if (rows - row >= 2) { dots<T, 2, O>(op, row, out); row += 2; }
    if (rows - row) dots<T, 1, O>(op, row, out);
}

template <class T>
static void float_product(const Op& op, int rows, Share outs) {
    int out = outs.begin;
    for (; out + 4 <= outs.end; out += 4) dot_rows<T, 4>(op, rows, out);
    for (; out < outs.end; ++out) dot_rows<T, 1>(op, rows, out);
}

// A weight that lies [in][out]: eight of its rows at a time are added to all rows' sums.
template <class T, int K>
INLINE void add_inputs(const Op& op, int rows, Share outs, int k) {
    const T* w = (const T*)op.weight + (int64_t)k * op.out;
    int out = outs.begin;
    for (; out + LANES <= outs.end; out += LANES) {
        Floats v[K];
        for (int i = 0; i < K; ++i) {
            v[i] = load(w + (int64_t)i * op.out + out);
            __builtin_prefetch(w + (int64_t)(i + K) * op.out + out);
        }
        for (int row = 0; row < rows; ++row) {
            const float* x = op.source + (int64_t)row * op.in + k;
            float* y = op.raw + (int64_t)row * op.out + out;
            Floats total = k ? load(y) : Floats{};
            for (int i = 0; i < K; ++i) total += v[i] * x[i];
            store(y, total);
        }
    }
    if (int left = outs.end - out)
        for (int row = 0; row < rows; ++row) {
            const float* x = op.source + (int64_t)row * op.in + k;
            float* y = op.raw + (int64_t)row * op.out + out;
            Floats total = k ? load_some(y, left) : Floats{};
            for (int i = 0; i < K; ++i) total += load_some(w + (int64_t)i * op.out + out, left) * x[i];
            store_some(y, total, left);
        }
}

template <class T>
static void transposed_product(const Op& op, int rows, Share outs) {
    int k = 0;
    for (; k + 8 <= op.in; k += 8) add_inputs<T, 8>(op, rows, outs, k);
    for (; k < op.in; ++k) add_inputs<T, 1>(op, rows, outs, k);
}

// One step of a product with many rows: an input of float32 or two of bfloat16, times 16 outputs' weights.
INLINE Floats step(Floats total, const float* w, const float* x) { return total + load(w) * *x; }
#if defined(TUNESMITH_BF16)
INLINE Floats step(Floats total, const Half* w, const Half* x) {
    int32_t two;
    __builtin_memcpy(&two, x, 4);
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32(two));
}
INLINE void store_some(Half* x, Floats v, int count) {
    __m256bh y = _mm512_cvtneps_pbh((__m512)v);
    if (count == LANES) _mm256_storeu_si256((__m256i*)x, (__m256i)y);
    else __builtin_memcpy(x, &y, count * sizeof(Half));
}
#endif

// Sums of `rows` rows, plus bias and `first`, activated (ELU is all they need).  Where there are `bytes`, those are what is
// activated, and the target is not.
template <class T, int O, int ACTIVATION>
static __attribute__((noinline)) void finish_tile(const Op& op, int row, int rows, int out, const Floats (*sums)[O]) {
    Floats bias[O];
    int left[O];
    for (int o = 0; o < O; ++o) {
        int from = out + o * LANES;
        left[o] = op.out - from < LANES ? op.out - from : LANES;
        bias[o] = op.bias && left[o] > 0 ? load_some(op.bias + from, left[o]) : Floats{};
    }
    for (int r = 0; r < rows; ++r)
        for (int o = 0; o < O; ++o) {
            if (left[o] <= 0) continue;
            int64_t at = (int64_t)(row + r) * op.out + out + o * LANES;
            Floats y = sums[r][o] + bias[o];
            if (op.first) y += load_some(op.first + at, left[o]);
            Floats active = activate(y, ACTIVATION);
            if (op.bytes) store_some((T*)op.bytes + at, active, left[o]);
            if (op.target) store_some(op.target + at, op.bytes ? y : active, left[o]);
        }
}

// R rows times O * 16 of the weight's rows, which lie [out / 32][taps * in][32], of bfloat16 two inputs side by side: for
// many rows, where arithmetic is what costs.  A row of inputs begins `stride` numbers after the one before, so
// convolutions need no copies of their windows.  Not inlined, so that the sums have all registers.
template <class T, int R, int O>
static __attribute__((noinline)) void tile(const Op& op, int row, int out) {
    constexpr int INPUTS = 4 / sizeof(T);
    const T* x = (const T*)op.source + (int64_t)row * op.stride;
    const T* w = (const T*)op.weight + (int64_t)(out / PANEL) * op.taps * op.in * PANEL + out % PANEL * INPUTS;
    Floats total[R][O], sums[R][O];
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) total[r][o] = Floats{};
    const int64_t stride = op.stride;
    for (int tap = 0; tap < op.taps; ++tap, x += op.gap)
        for (const T *u = x, *end = x + op.in; u < end; u += INPUTS, w += PANEL * INPUTS)
            for (int r = 0; r < R; ++r)
                for (int o = 0; o < O; ++o) total[r][o] = step(total[r][o], w + o * LANES * INPUTS, u + r * stride);
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) sums[r][o] = total[r][o];  // from the registers, all at once
    if (op.activation == ELU) finish_tile<T, O, ELU>(op, row, R, out, sums);
    else finish_tile<T, O, NONE>(op, row, R, out, sums);
}

template <class T, int O>
static void panels(const Op& op, Share rows, Share outs) {
    for (int out = outs.begin; out < outs.end; out += O * LANES) {
        int row = rows.begin;
        for (; row + TILE <= rows.end; row += TILE) tile<T, TILE, O>(op, row, out);
        if (TILE > 8 && row + 8 <= rows.end) { tile<T, 8, O>(op, row, out); row += 8; }
        if (TILE > 4 && row + 4 <= rows.end) { tile<T, 4, O>(op, row, out); row += 4; }
        if (row + 2 <= rows.end) { tile<T, 2, O>(op, row, out); row += 2; }
        if (row < rows.end) tile<T, 1, O>(op, row, out);
    }
}

// Few rows are shared by outputs (if those are enough), many by rows; a block of rows stays near while the whole weight
// goes by.
template <class T>
static void panel_product(const Op& op, const Job& job) {
    bool many = job.rows >= BLOCK * job.threads || op.out <= 2 * PANEL * job.threads;
    Share rows = many ? share(job.rows, TILE, job) : Share{0, job.rows};
    Share outs = many ? Share{0, op.out} : share(op.out, PANEL, job);
    for (int row = rows.begin; row < rows.end; row += BLOCK) {
        Share block{row, row + BLOCK < rows.end ? row + BLOCK : rows.end};
        if (op.out <= LANES) panels<T, 1>(op, block, outs);
        else panels<T, PANEL / LANES>(op, block, outs);
    }
}

#if defined(TUNESMITH_VNNI)
#define BIAS8 128  // weights are stored with 128 added, which the products here keep
#define BIAS4 8
INLINE Integers products(Integers total, Bytes64 w, int32_t four, bool) {
    return (Integers)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, _mm512_set1_epi32(four));
}
#elif defined(TUNESMITH_AVX2)
#define BIAS8 0
#define BIAS4 8
INLINE Integers products(Integers total, Bytes64 w, int32_t four, bool wide) {
    const __m256i x = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8((char)128);
    __m256i* halves = (__m256i*)&w;
    __m256i* sums = (__m256i*)&total;
    for (int i = 0; i < 2; ++i) {
        // Pairs of products are added in 16 bits, which |x| times a signed weight fits into.
        __m256i pairs = wide ? _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(_mm256_xor_si256(halves[i], flip), x))
                             : _mm256_maddubs_epi16(halves[i], x);
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
    }
    return total;
}
#else
#define BIAS8 128
#define BIAS4 8
INLINE Integers products(Integers total, Bytes64 w, int32_t four, bool) {
    const int8_t* x = (const int8_t*)&four;
    const uint8_t* u = (const uint8_t*)&w;
    for (int o = 0; o < LANES; ++o)
        for (int k = 0; k < 4; ++k) total[o] += (int32_t)u[4 * o + k] * x[k];
    return total;
}
#endif

template <int BITS, int R, int O, bool FETCH>
INLINE void add_products(Integers (&total)[R][O], const uint8_t* w, int64_t far, const int8_t* x, int64_t wide, int count) {
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i, w += 64, x += BITS == 8 ? 4 : 8) {
        Bytes64 v[O];
        for (int o = 0; o < O; ++o) {
            v[o] = *(const Bytes64At*)(w + o * far);
            if (FETCH) __builtin_prefetch(w + o * far + AHEAD);
        }
        for (int r = 0; r < R; ++r)
            for (int o = 0; o < O; ++o) {
                Integers& t = total[r][o];
                if (BITS == 8) t = products(t, v[o], word(x + r * wide), true);
                else t = products(products(t, v[o] & 15, word(x + r * wide), false), v[o] >> 4, word(x + r * wide + 4), false);
            }
    }
}

struct Bytes { const uint8_t *begin, *end; };

// R rows times O * 16 of the weight's rows, which lie [in / 4][16][4] (int8) or [in / 8][16][4 bytes of two] (int4).
// Meanwhile `soon` is fetched, of the weight's rows that come next; without it, what comes next of these.
template <int BITS, int R, int O, bool FETCH>
static __attribute__((noinline)) void panel(const Op& op, int row, int out, Bytes soon) {
    const int groups = (op.in + GROUP - 1) / GROUP, step = BITS == 8 ? 4 : 8, steps = (op.in + step - 1) / step;
    const int64_t wide = (int64_t)groups * GROUP, far = (int64_t)steps * 64, scaled = LANES * (BITS == 8 ? 1 : groups);
    const int64_t each = ((soon.end - soon.begin) / groups + 63) / 64 * 64;
    const uint8_t* w = (const uint8_t*)op.weight + out / LANES * far;
    const float* scales = op.scales + out / LANES * scaled;
    const int8_t* x = op.bytes + row * wide;
    const float* x_scales = op.byte_scales + (int64_t)row * groups;
    const int32_t* x_sums = op.byte_sums + (int64_t)row * groups;
    Floats result[R][O] = {};
    for (int g = 0; g < groups; ++g) {
        Integers total[R][O];
        for (int r = 0; r < R; ++r)
            for (int o = 0; o < O; ++o) total[r][o] = Integers{} - (BITS == 8 ? BIAS8 : BIAS4) * x_sums[r * groups + g];
        if (!FETCH)
            for (const uint8_t* end = soon.begin + each; soon.begin < end && soon.begin < soon.end; soon.begin += 64)
                __builtin_prefetch(soon.begin);
        int left = steps - g * (GROUP / step);
        const int8_t* at = x + g * GROUP;
        if (left >= GROUP / step) add_products<BITS, R, O, FETCH>(total, w, far, at, wide, GROUP / step);  // the compiler knows how many
        else add_products<BITS, R, O, FETCH>(total, w, far, at, wide, left);
        w += (left < GROUP / step ? left : GROUP / step) * 64;
        for (int r = 0; r < R; ++r)
            for (int o = 0; o < O; ++o) {
                Floats part = __builtin_convertvector(total[r][o], Floats) * x_scales[r * groups + g];
                result[r][o] += BITS == 8 ? part : part * load(scales + o * scaled + (int64_t)g * LANES);
            }
    }
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) {
            int from = out + o * LANES, left = op.out - from < LANES ? op.out - from : LANES;
            Floats y = BITS == 8 ? result[r][o] * load(scales + o * scaled) : result[r][o];
            store_some(op.raw + (int64_t)(row + r) * op.out + from, y, left);
        }
}

// Of many rows each block of them fetches its part of the weight's rows that come next: memory is never waited for.
template <int BITS, int O>
INLINE void panel_rows(const Op& op, int rows, int out) {
    const int64_t size = (int64_t)((op.in + (BITS == 8 ? 3 : 7)) / (BITS == 8 ? 4 : 8)) * 64 * O;
    const uint8_t* next = (const uint8_t*)op.weight + (out / LANES + O) * (size / O);
    int row = 0;
    if (rows >= 2 * MANY)
        for (int blocks = rows / MANY; row + MANY <= rows; row += MANY) {
            int block = row / MANY;
            panel<BITS, MANY, O, false>(op, row, out, {next + size * block / blocks, next + size * (block + 1) / blocks});
        }
    for (; row + MANY <= rows; row += MANY) panel<BITS, MANY, O, true>(op, row, out, {});
    for (; row + 4 <= rows; row += 4) panel<BITS, 4, O, true>(op, row, out, {});
    if (rows - row >= 2) { panel<BITS, 2, O, true>(op, row, out, {}); row += 2; }
    if (rows - row) panel<BITS, 1, O, true>(op, row, out, {});
}

// target = first_weight * first + second_weight * second + weight * activation(product + bias)
INLINE void finish(const Op& op, int rows, Share outs) {
    for (int row = 0; row < rows; ++row) {
        int64_t base = (int64_t)row * op.out;
        int o = outs.begin;
        for (; o + LANES <= outs.end; o += LANES) {
            Floats y = load(op.raw + base + o);
            if (op.bias) y += load(op.bias + o);
            y = activate(y, op.activation) * op.own_weight;
            if (op.first) y += load(op.first + base + o) * op.first_weight;
            if (op.second) y += load(op.second + base + o) * op.second_weight;
            store(op.target + base + o, y);
        }
        for (; o < outs.end; ++o) {
            float y = op.raw[base + o] + (op.bias ? op.bias[o] : 0.0f);
            y = activate(splat(y), op.activation)[0] * op.own_weight;
            if (op.first) y += op.first[base + o] * op.first_weight;
            if (op.second) y += op.second[base + o] * op.second_weight;
            op.target[base + o] = y;
        }
    }
}

// Finished at once, while what was made is near.
template <int BITS>
static void packed_product(const Op& op, int rows, Share outs) {
    for (int out = outs.begin, next; out < outs.end; out = next) {
        bool two = rows >= 4 && out + LANES < outs.end;
        next = out + (two ? 2 : 1) * LANES < outs.end ? out + (two ? 2 : 1) * LANES : outs.end;
        if (two) panel_rows<BITS, 2>(op, rows, out);
        else panel_rows<BITS, 1>(op, rows, out);
        finish(op, rows, Share{out, next});
    }
}

static void linear(const Op& op, const Job& job) {
    if (op.format == FLOAT32_PANELS) return panel_product<float>(op, job);
#if defined(TUNESMITH_BF16)
    if (op.format == BFLOAT16_PANELS) return panel_product<Half>(op, job);
#endif
    Share mine = share(op.out, LANES, job);
    switch (op.format) {
        case FLOAT32: float_product<float>(op, job.rows, mine); break;
        case BFLOAT16: float_product<Half>(op, job.rows, mine); break;
        case FLOAT32_BY_INPUT: transposed_product<float>(op, job.rows, mine); break;
        case BFLOAT16_BY_INPUT: transposed_product<Half>(op, job.rows, mine); break;
        case INT8: return packed_product<8>(op, job.rows, mine);
        case INT4: return packed_product<4>(op, job.rows, mine);
    }
    finish(op, job.rows, mine);
}

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

// ---- attention ------------------------------------------------------------------------------------------------------
//
// Keys lie [sequence][head][capacity / 16][width][16], values [sequence][head][capacity][width, filled up to 16].
//
// With int8 two numbers that are multiplied one after the other lie side by side, for products of pairs of 16 bits: keys
// [capacity / 16][width / 2][16][2], values [capacity / 2][width][2]; each key and each value has a scale
// [sequence][head][capacity].  What they are multiplied with is rounded to 16 bits, which costs nothing that counts.

INLINE void put(float* at, float x) { *at = x; }
INLINE void put(Half* at, float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    *at = (Half)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}
INLINE void put(int8_t* at, float x) { *at = (int8_t)__builtin_lrintf(x); }
INLINE int even(int x) { return (x + 1) / 2 * 2; }

// 16 sums of two products each: 32 bytes times the same two numbers of 16 bits.
#if defined(TUNESMITH_VNNI)
INLINE Integers pairs(Integers total, const int8_t* x, int32_t two) {
    __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)x));
    return (Integers)_mm512_dpwssd_epi32((__m512i)total, wide, _mm512_set1_epi32(two));
}
#elif defined(TUNESMITH_AVX2)
INLINE Integers pairs(Integers total, const int8_t* x, int32_t two) {
    __m256i* sums = (__m256i*)&total;
    for (int i = 0; i < 2; ++i) {
        __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)x + i));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(wide, _mm256_set1_epi32(two)));
    }
    return total;
}
#else
INLINE Integers pairs(Integers total, const int8_t* x, int32_t two) {
    int32_t first = (int16_t)two, second = two >> 16;
    for (int i = 0; i < LANES; ++i) total[i] += x[2 * i] * first + x[2 * i + 1] * second;
    return total;
}
#endif
INLINE int32_t two(const int16_t* x) { int32_t y; __builtin_memcpy(&y, x, 4); return y; }
INLINE void shorten(int16_t* at, Floats x) {
    Floats whole = (x + 12582912.0f) - 12582912.0f;
    Shorts y = __builtin_convertvector(__builtin_convertvector(whole, Integers), Shorts);
    __builtin_memcpy(at, &y, sizeof(y));
}
constexpr float REACH = 16909320.0f;  // 2^31 / 127: what numbers may sum to that are multiplied with bytes

template <class T>
INLINE void remember(const Op& op, const Job& job, int row, int head) {
    const View& view = job.views[op.view];
    int place = view.write[row], wide = (op.width + LANES - 1) / LANES * LANES;
    if (place < 0) return;
    int64_t slot = (int64_t)view.sequence[row] * op.heads + head;
    const float* key = op.source + (int64_t)row * op.stride + (int64_t)head * op.width;
    const float* value = op.second + (int64_t)row * op.stride + (int64_t)head * op.width;
    if (sizeof(T) > 1) {
        T* keys = (T*)op.keys + (slot * op.capacity + place / LANES * LANES) * op.width + place % LANES;
        T* values = (T*)op.values + (slot * op.capacity + place) * wide;
        for (int i = 0; i < op.width; ++i) {
            put(keys + i * LANES, key[i]);
            put(values + i, value[i]);
        }
        return;
    }
    int8_t* keys = (int8_t*)op.keys + (slot * op.capacity + place / LANES * LANES) * even(op.width) + place % LANES * 2;
    int8_t* values = (int8_t*)op.values + (slot * op.capacity + place / 2 * 2) * wide + place % 2;
    float top_key = 0, top_value = 0;
    for (int i = 0; i < op.width; ++i) {
        top_key = __builtin_fmaxf(top_key, __builtin_fabsf(key[i]));
        top_value = __builtin_fmaxf(top_value, __builtin_fabsf(value[i]));
    }
    float by_key = top_key > 0 ? 127.0f / top_key : 0.0f, by_value = top_value > 0 ? 127.0f / top_value : 0.0f;
    op.key_scales[slot * op.capacity + place] = top_key / 127.0f;
    op.value_scales[slot * op.capacity + place] = top_value / 127.0f;
    for (int i = 0; i < op.width; ++i) {
        put(keys + i / 2 * 2 * LANES + i % 2, key[i] * by_key);
        put(values + 2 * i, value[i] * by_value);
    }
}

INLINE void fetch(const void* x) { __builtin_prefetch(x); }

// Softmax over scores, which become probabilities (times the scale of each value, with bytes); returns their sum.
INLINE float soften(float* scores, int blocks, Floats top, const float* scales) {
    float most = largest(top);
    Floats total{};
    for (int b = 0; b < blocks; ++b) {
        Floats s = load(scores + b * LANES), p = exponential(s - most);
        p = s == -INFINITY ? Floats{} : p;
        total += p;
        store(scores + b * LANES, scales ? p * load(scales + b * LANES) : p);
    }
    return sum(total);
}

template <class T>
INLINE void attend_one(const Op& op, const Job& job, int row, int head, float* scores) {
    const View& view = job.views[op.view];
    int count = view.length[row], start = view.start[row], wide = (op.width + LANES - 1) / LANES * LANES;
    float* out = op.target + (int64_t)row * op.heads * op.width + (int64_t)head * op.width;
    if (!count) {
        for (int i = 0; i < op.width; ++i) out[i] = 0;
        return;
    }
    int64_t slot = (int64_t)view.sequence[row] * op.heads + head;
    const float* query = op.first + (int64_t)row * op.stride + (int64_t)head * op.width;
    const T* keys = (const T*)op.keys + (slot * op.capacity + start) * op.width;
    const T* values = (const T*)op.values + (slot * op.capacity + start) * wide;
    Floats top = splat(-INFINITY);
    int blocks = (count + LANES - 1) / LANES, size = LANES * op.width * (int)sizeof(T), ahead = FAR / size + 1;
    for (int b = 0; b < blocks; ++b) {
        Floats s{}, s2{};
        const T* k = keys + (int64_t)b * LANES * op.width;
        const T* next = b + ahead < blocks ? k + ahead * LANES * op.width : values + (b + ahead - blocks) * LANES * wide;
        int i = 0;
        for (; i + 2 <= op.width; i += 2) {
            fetch(next + i * LANES);
            if (sizeof(T) > 2) fetch(next + (i + 1) * LANES);
            s += load(k + i * LANES) * query[i];
            s2 += load(k + (i + 1) * LANES) * query[i + 1];
        }
        if (i < op.width) s += load(k + i * LANES) * query[i];
        s = (s + s2) * op.epsilon;
        if ((b + 1) * LANES > count)
            for (int j = count - b * LANES; j < LANES; ++j) s[j] = -INFINITY;
        top = s > top ? s : top;
        store(scores + b * LANES, s);
    }
    float by = 1.0f / soften(scores, blocks, top, nullptr);
    for (int i = 0; i < wide; i += 4 * LANES) {
        Floats s[4] = {};
        int parts = (wide - i) / LANES < 4 ? (wide - i) / LANES : 4;
        if (parts == 4) {
            for (int t = 0; t < count; ++t) {
                const T* v = values + (int64_t)(t + ahead * LANES) * wide + i;
                for (int byte = 0; byte < 4 * LANES * (int)sizeof(T); byte += 64) fetch((const char*)v + byte);
                for (int j = 0; j < 4; ++j) s[j] += load(values + (int64_t)t * wide + i + j * LANES) * scores[t];
            }
        } else {
            for (int j = 0; j < parts; ++j)
                for (int t = 0; t < count; ++t) s[j] += load(values + (int64_t)t * wide + i + j * LANES) * scores[t];
        }
        for (int j = 0; j < parts; ++j) {
            int from = i + j * LANES;
            Floats y = s[j] * by;
            if (from + LANES <= op.width) store(out + from, y);
            else store_some(out + from, y, op.width - from);
        }
    }
}

// What is read so many bytes later: from `end` on it is another array.
INLINE const int8_t* following(const int8_t* at, int64_t later, const int8_t* end, const int8_t* other) {
    return at + later < end ? at + later : other + (at + later - end);
}

INLINE void attend_bytes(const Op& op, const Job& job, int row, int head, float* scores) {
    const View& view = job.views[op.view];
    int count = view.length[row], start = view.start[row], width = even(op.width);
    int wide = (op.width + LANES - 1) / LANES * LANES, blocks = (count + LANES - 1) / LANES;
    float* out = op.target + (int64_t)row * op.heads * op.width + (int64_t)head * op.width;
    if (!count) {
        for (int i = 0; i < op.width; ++i) out[i] = 0;
        return;
    }
    int64_t slot = (int64_t)view.sequence[row] * op.heads + head;
    const float* query = op.first + (int64_t)row * op.stride + (int64_t)head * op.width;
    const int8_t* keys = (const int8_t*)op.keys + (slot * op.capacity + start) * width;
    const int8_t* values = (const int8_t*)op.values + (slot * op.capacity + start) * wide;
    const float *key_scales = op.key_scales + slot * op.capacity + start, *value_scales = op.value_scales + slot * op.capacity + start;

    int16_t* words = (int16_t*)(scores + blocks * LANES);  // the query
    float reach = REACH / width < 32767.0f ? __builtin_floorf(REACH / width) : 32767.0f;
    Floats peak{};
    for (int i = 0; i < op.width; i += LANES) {
        Floats q = load_some(query + i, op.width - i < LANES ? op.width - i : LANES);
        peak = q > peak ? q : (-q > peak ? -q : peak);
    }
    float most = largest(peak), by = most > 0 ? reach / most : 0.0f, back = most / reach * op.epsilon;
    for (int i = 0; i < op.width; i += LANES)
        shorten(words + i, load_some(query + i, op.width - i < LANES ? op.width - i : LANES) * by);

    Floats top = splat(-INFINITY);
    for (int b = 0; b < blocks; ++b) {
        Integers s[4] = {};
        const int8_t* k = keys + (int64_t)b * LANES * width;
        const int8_t* next = following(k, FAR, keys + (int64_t)blocks * LANES * width, values);
        fetch(value_scales + b * LANES);
        fetch(key_scales + op.capacity + b * LANES);  // of the next head
        int i = 0;
        for (; i + 8 <= width; i += 8)
            for (int j = 0; j < 4; ++j) {
                if (j % 2 == 0) fetch(next + (i + 2 * j) * LANES);
                s[j] = pairs(s[j], k + (i + 2 * j) * LANES, two(words + i + 2 * j));
            }
        for (; i < width; i += 2) s[0] = pairs(s[0], k + i * LANES, two(words + i));
        Floats y = __builtin_convertvector(s[0] + s[1] + s[2] + s[3], Floats) * back * load(key_scales + b * LANES);
        if ((b + 1) * LANES > count)
            for (int j = count - b * LANES; j < LANES; ++j) y[j] = -INFINITY;
        top = y > top ? y : top;
        store(scores + b * LANES, y);
    }
    float whole = soften(scores, blocks, top, value_scales);

    Floats all = peak = Floats{};
    for (int b = 0; b < blocks; ++b) {
        Floats p = load(scores + b * LANES);
        peak = p > peak ? p : peak;
        all += p;
    }
    float highest = largest(peak), together = sum(all);
    if (!(highest > 0)) {
        for (int i = 0; i < op.width; ++i) out[i] = 0;
        return;
    }
    by = 0.999f * (32767.0f / highest < REACH / together ? 32767.0f / highest : REACH / together);  // roundings add up
    int16_t* parts16 = (int16_t*)scores;  // probabilities, in place
    for (int b = 0; b < blocks; ++b) shorten(parts16 + b * LANES, load(scores + b * LANES) * by);
    by = 1.0f / (by * whole);
    for (int i = 0; i < wide; i += 4 * LANES) {
        Integers s[4] = {}, s2[4] = {};
        int parts = (wide - i) / LANES < 4 ? (wide - i) / LANES : 4;
        const int8_t* v = values + 2 * i;
        int t = 0;
        if (parts == 4)
            for (; t + 4 <= count; t += 4, v += 4 * wide) {
                const int8_t* next = following(v, FAR, values + (int64_t)count * wide, keys + op.capacity * width);
                for (int byte = 0; byte < 256; byte += 64) fetch(next + byte);
                for (int j = 0; j < 4; ++j) {
                    s[j] = pairs(s[j], v + 2 * j * LANES, two(parts16 + t));
                    s2[j] = pairs(s2[j], v + 2 * wide + 2 * j * LANES, two(parts16 + t + 2));
                }
            }
        for (; t < count; t += 2, v += 2 * wide)
            for (int j = 0; j < parts; ++j) s[j] = pairs(s[j], v + 2 * j * LANES, two(parts16 + t));
        for (int j = 0; j < parts; ++j) {
            int from = i + j * LANES, left = op.width - from < LANES ? op.width - from : LANES;
            if (left > 0) store_some(out + from, __builtin_convertvector(s[j] + s2[j], Floats) * by, left);
        }
    }
}

template <class T>
static void attention(const Op& op, const Job& job, float* scores) {
    Share mine = share(job.rows * op.heads, 1, job);
    for (int i = mine.begin; i < mine.end; ++i) {
        if (op.kind == REMEMBER) remember<T>(op, job, i / op.heads, i % op.heads);
        else if constexpr (sizeof(T) == 1) attend_bytes(op, job, i / op.heads, i % op.heads, scores);
        else attend_one<T>(op, job, i / op.heads, i % op.heads, scores);
    }
}

static void execute(const Op& op, const Job& whole, float* scores) {
    Job job = whole;
    if (op.rows) job.rows = op.rows > 0 ? op.rows : *job.views[op.view].leading;
    switch (op.kind) {
        case NORM: norm(op, job); break;
        case QUANTISE: quantise(op, job); break;
        case LINEAR: linear(op, job); break;
        case GATES: gates(op, job); break;
        default:
            switch (op.format) {
                case FLOAT32: attention<float>(op, job, scores); break;
                case BFLOAT16: attention<Half>(op, job, scores); break;
                default: attention<int8_t>(op, job, scores); break;
            }
    }
}

#undef BIAS8
#undef BIAS4
#undef TILE
#undef MANY
