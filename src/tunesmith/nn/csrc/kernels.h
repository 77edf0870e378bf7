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
// Places come in blocks of 16, a head's beside the next head's, and are read as they lie: gaps cost what reading them does.
// Keys lie [sequence][capacity / 16][head][width][16], values [sequence][capacity / 16][head][16][width, filled up to 16].
//
// With int8 two numbers that are multiplied one after the other lie side by side, for products of pairs of 16 bits: a
// block's keys [width / 2][16][2], its values [8][width][2]; each key and each value has a scale
// [sequence][capacity / 16][head][16].  What they are multiplied with is rounded to 16 bits, which costs nothing that counts.

INLINE void put(float* at, float x) { *at = x; }
INLINE void put(Half* at, float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    *at = (Half)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}
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

// A block of places, counted in all heads' blocks of all sequences.
INLINE int64_t block_of(const Op& op, const View& view, int row, int head, int place) {
    return (view.sequence[row] * (op.capacity / LANES) + place / LANES) * op.heads + head;
}

template <class T>
INLINE void remember(const Op& op, const View& view, int row, int head, int8_t* bytes) {
    int place = view.write[row], wide = (op.width + LANES - 1) / LANES * LANES;
    if (place < 0) return;
    const int64_t block = block_of(op, view, row, head, place);
    const float* key = op.source + (int64_t)row * op.stride + (int64_t)head * op.width;
    const float* value = op.second + (int64_t)row * op.stride + (int64_t)head * op.width;
    place %= LANES;
    if constexpr (sizeof(T) > 1) {
        T* keys = (T*)op.keys + block * LANES * op.width + place;
        T* values = (T*)op.values + (block * LANES + place) * wide;
        for (int i = 0; i < op.width; ++i) {
            put(keys + i * LANES, key[i]);
            put(values + i, value[i]);
        }
    } else {
        int8_t* keys = (int8_t*)op.keys + block * LANES * even(op.width) + place * 2;
        int8_t* values = (int8_t*)op.values + (block * LANES + place / 2 * 2) * wide;
        const int mine = place % 2 * 8, others = 0xff00 >> mine;  // of the 16 bits that two places' values share
        int32_t sum;
        quantise_group(key, op.width, bytes, op.key_scales + block * LANES + place, &sum);
        for (int i = 0; i < op.width; i += 2) __builtin_memcpy(keys + i * LANES, bytes + i, 2);
        quantise_group(value, op.width, bytes, op.value_scales + block * LANES + place, &sum);
        for (int i = 0; i < op.width; ++i) {
            uint16_t both;
            __builtin_memcpy(&both, values + 2 * i, 2);
            both = (uint16_t)((both & others) | (uint8_t)bytes[i] << mine);
            __builtin_memcpy(values + 2 * i, &both, 2);
        }
    }
}

// A head's block is going to be written to: nobody waits for memory then.
template <class T>
INLINE void expect(const Op& op, const View& view, int row, int head) {
    const int width = sizeof(T) == 1 ? even(op.width) : op.width, wide = (op.width + LANES - 1) / LANES * LANES;
    const int place = view.write[row];
    if (place < 0) return;
    const int64_t block = block_of(op, view, row, head, place);
    const char* keys = (const char*)((T*)op.keys + block * LANES * width);
    const char* values = (const char*)((T*)op.values + (block * LANES + place % LANES / 2 * 2) * wide);
    for (int byte = 0; byte < LANES * width * (int)sizeof(T); byte += 64) __builtin_prefetch(keys + byte, 1);
    for (int byte = 0; byte < 2 * wide * (int)sizeof(T); byte += 64) __builtin_prefetch(values + byte, 1);
    if (sizeof(T) > 1) return;
    __builtin_prefetch(op.key_scales + block * LANES, 1);
    __builtin_prefetch(op.value_scales + block * LANES, 1);
}

INLINE void fetch(const void* x) { __builtin_prefetch(x); }

// Scores of 16 keys; meanwhile what is read later is fetched.
template <class T>
INLINE Floats score(const T* keys, const float* query, int width, const T* next) {
    Floats s{}, s2{};
    int i = 0;
    for (; i + 2 <= width; i += 2) {
        fetch(next + i * LANES);
        if (sizeof(T) > 2) fetch(next + (i + 1) * LANES);
        s += load(keys + i * LANES) * query[i];
        s2 += load(keys + (i + 1) * LANES) * query[i + 1];
    }
    if (i < width) s += load(keys + i * LANES) * query[i];
    return s + s2;
}
INLINE Floats score(const int8_t* keys, const int16_t* query, int width, const int8_t* next) {
    Integers s[4] = {};
    int i = 0;
    for (; i + 8 <= width; i += 8)
        for (int j = 0; j < 4; ++j) {
            if (j % 2 == 0) fetch(next + (i + 2 * j) * LANES);
            s[j] = pairs(s[j], keys + (i + 2 * j) * LANES, two(query + i + 2 * j));
        }
    for (; i < width; i += 2) s[0] = pairs(s[0], keys + i * LANES, two(query + i));
    return __builtin_convertvector(s[0] + s[1] + s[2] + s[3], Floats);
}

// Adds up to 16 values times their probabilities to sums of `wide` numbers.
template <class T>
INLINE void add_values(const T* values, const float* by, int places, int wide, float* sums, const T* next) {
    for (int i = 0; i < wide; i += 4 * LANES) {
        const int parts = (wide - i) / LANES < 4 ? (wide - i) / LANES : 4;
        if (parts == 4) {
            Floats s[4];
            for (int j = 0; j < 4; ++j) s[j] = load(sums + i + j * LANES);
            for (int t = 0; t < places; ++t) {
                for (int byte = 0; byte < 4 * LANES * (int)sizeof(T); byte += 64) fetch((const char*)(next + t * wide + i) + byte);
                for (int j = 0; j < 4; ++j) s[j] += load(values + t * wide + i + j * LANES) * by[t];
            }
            for (int j = 0; j < 4; ++j) store(sums + i + j * LANES, s[j]);
        } else {
            for (int j = i; j < wide; j += LANES) {
                Floats s = load(sums + j);
                for (int t = 0; t < places; ++t) s += load(values + t * wide + j) * by[t];
                store(sums + j, s);
            }
        }
    }
}
INLINE void add_values(const int8_t* values, const int16_t* by, int places, int wide, float* sums, const int8_t* next) {
    for (int i = 0; i < wide; i += 4 * LANES) {
        const int parts = (wide - i) / LANES < 4 ? (wide - i) / LANES : 4;
        const int8_t *v = values + 2 * i, *soon = next + 2 * i;
        Integers s[4] = {}, s2[4] = {};
        int t = 0;
        for (int j = 0; j < parts; ++j) s[j] = (Integers)load(sums + i + j * LANES);
        if (parts == 4)
            for (; t + 4 <= places; t += 4) {
                for (int byte = 0; byte < 256; byte += 64) fetch(soon + t * wide + byte);
                for (int j = 0; j < 4; ++j) {
                    s[j] = pairs(s[j], v + t * wide + 2 * j * LANES, two(by + t));
                    s2[j] = pairs(s2[j], v + (t + 2) * wide + 2 * j * LANES, two(by + t + 2));
                }
            }
        for (; t < places; t += 2)
            for (int j = 0; j < parts; ++j) s[j] = pairs(s[j], v + t * wide + 2 * j * LANES, two(by + t));
        for (int j = 0; j < parts; ++j) store(sums + i + j * LANES, (Floats)(s[j] + s2[j]));
    }
}

// Softmax over scores, which become probabilities (times the scale of each value, with bytes, those of a block `hop` after
// those of the one before); returns their sum.
INLINE float soften(float* scores, int blocks, const float* scales, int64_t hop) {
    Floats top = splat(-INFINITY), total{};
    for (int b = 0; b < blocks; ++b) {
        Floats s = load(scores + b * LANES);
        top = s > top ? s : top;
    }
    float most = largest(top);
    for (int b = 0; b < blocks; ++b) {
        Floats s = load(scores + b * LANES), p = exponential(s - most);
        p = s == -INFINITY ? Floats{} : p;
        total += p;
        store(scores + b * LANES, scales ? p * load(scales + b * hop) : p);
    }
    return sum(total);
}

// The query as whole numbers of 16 bits; returns what one of them is worth.
INLINE float shorten_query(const float* query, int width, int16_t* words) {
    float reach = REACH / even(width) < 32767.0f ? __builtin_floorf(REACH / even(width)) : 32767.0f;
    Floats peak{};
    for (int i = 0; i < width; i += LANES) {
        Floats q = load_some(query + i, width - i < LANES ? width - i : LANES);
        peak = q > peak ? q : (-q > peak ? -q : peak);
    }
    float most = largest(peak), by = most > 0 ? reach / most : 0.0f;
    for (int i = 0; i < width; i += LANES)
        shorten(words + i, load_some(query + i, width - i < LANES ? width - i : LANES) * by);
    return most / reach;
}

// Probabilities as whole numbers of 16 bits, in place; returns what one of them is worth.
INLINE float shorten_scores(float* scores, int blocks) {
    Floats all{}, peak{};
    for (int b = 0; b < blocks; ++b) {
        Floats p = load(scores + b * LANES);
        peak = p > peak ? p : peak;
        all += p;
    }
    float highest = largest(peak), together = sum(all);
    if (!(highest > 0)) highest = together = 1;  // all values are zero
    float by = 0.999f * (32767.0f / highest < REACH / together ? 32767.0f / highest : REACH / together);  // roundings add up
    for (int b = 0; b < blocks; ++b) shorten((int16_t*)scores + b * LANES, load(scores + b * LANES) * by);
    return 1.0f / by;
}

// Which block, of some heads, comes so many after the first.
struct Ahead {
    int block, head, heads;
    int64_t hop;
    Ahead(int count, int heads, int64_t hop) : block(count / heads), head(count % heads), heads(heads), hop(hop) {}
    int64_t next() {
        const int64_t at = block * hop + head;
        if (++head == heads) { head = 0; ++block; }
        return at;
    }
};

// What a row sees with heads `first` to `last`, block by block as it lies in memory.
template <class T>
INLINE void attend(const Op& op, const View& view, int row, int first, int last, float* scratch) {
    constexpr bool few = sizeof(T) == 1;
    const int count = view.length[row], blocks = (count + LANES - 1) / LANES, heads = last - first;
    const int width = few ? even(op.width) : op.width, wide = (op.width + LANES - 1) / LANES * LANES;
    float* out = op.target + ((int64_t)row * op.heads + first) * op.width;
    for (int i = 0; !count && i < heads * op.width; ++i) out[i] = 0;
    if (!count) return;
    const float* query = op.first + (int64_t)row * op.stride + (int64_t)first * op.width;
    const int64_t begin = block_of(op, view, row, first, view.start[row]), hop = op.heads;
    const int64_t key_size = LANES * width, value_size = LANES * wide, each = blocks * LANES + 2 * wide + LANES;
    const T *keys = (const T*)op.keys + begin * key_size, *values = (const T*)op.values + begin * value_size;
    const float *key_scales = op.key_scales + begin * LANES, *value_scales = op.value_scales + begin * LANES;
    const int early = FAR / (int)(key_size * sizeof(T)) + 1;
    // A head's scratch: scores or probabilities, its query in few bits, sums, and what these are worth.
    const auto words = [=](int h) { return (int16_t*)(scratch + h * each + blocks * LANES); };
    const auto sums = [=](int h) { return scratch + h * each + blocks * LANES + wide; };
    const auto worth = [=](int h) { return scratch + h * each + blocks * LANES + 2 * wide; };

    if (few)
        for (int h = 0; h < heads; ++h) *worth(h) = shorten_query(query + h * op.width, op.width, words(h)) * op.epsilon;
    Ahead ahead(early, heads, hop);
    for (int b = 0; b < blocks; ++b)
        for (int h = 0; h < heads; ++h) {
            const int64_t at = b * hop + h;
            const bool more = ahead.block < blocks;
            const int64_t soon = ahead.next();
            const T* next = more ? keys + soon * key_size : values + (soon - blocks * hop) * value_size;
            Floats s;
            if constexpr (few) {
                fetch(key_scales + (at + early) * LANES);
                fetch(value_scales + at * LANES);
                s = score(keys + at * key_size, words(h), width, next) * *worth(h) * load(key_scales + at * LANES);
            } else {
                s = score(keys + at * key_size, query + h * op.width, width, next) * op.epsilon;
            }
            for (int j = count - b * LANES; j < LANES; ++j) s[j] = -INFINITY;
            store(scratch + h * each + b * LANES, s);
        }
    ahead = Ahead(early, heads, hop);
    for (int h = 0; h < heads; ++h) {
        float* scores = scratch + h * each;
        *worth(h) = 1.0f / soften(scores, blocks, few ? value_scales + h * LANES : nullptr, hop * LANES);
        if (few) *worth(h) *= shorten_scores(scores, blocks);
        for (int i = 0; i < wide; i += LANES) store(sums(h) + i, Floats{});
        const T* next = values + ahead.next() % (blocks * hop) * value_size;
        for (int byte = 0; byte < value_size * (int)sizeof(T); byte += 64) fetch((const char*)next + byte);
    }
    for (int b = 0; b < blocks; ++b)
        for (int h = 0; h < heads; ++h) {
            const T* v = values + (b * hop + h) * value_size;
            const T* next = ahead.block < blocks ? values + ahead.next() * value_size : v;
            const int places = count - b * LANES < LANES ? count - b * LANES : LANES;
            const float* by = scratch + h * each;
            if constexpr (few) add_values(v, (const int16_t*)by + b * LANES, places, wide, sums(h), next);
            else add_values(v, by + b * LANES, places, wide, sums(h), next);
        }
    for (int h = 0; h < heads; ++h)
        for (int i = 0; i < op.width; i += LANES) {
            Floats y = load(sums(h) + i);
            if (few) y = __builtin_convertvector((Integers)y, Floats);
            store_some(out + h * op.width + i, y * *worth(h), op.width - i < LANES ? op.width - i : LANES);
        }
}

template <class T>
static void attention(const Op& op, const Job& job, float* scratch) {
    const View& view = job.views[op.view];
    const Share mine = share(job.rows * op.heads, 1, job);
    if (op.kind == REMEMBER) {
        for (int i = mine.begin - SOON; i < mine.end; ++i) {
            if (i + SOON < mine.end) expect<T>(op, view, (i + SOON) / op.heads, (i + SOON) % op.heads);
            if (i >= mine.begin) remember<T>(op, view, i / op.heads, i % op.heads, (int8_t*)scratch);
        }
        return;
    }
    for (int i = mine.begin, next; i < mine.end; i = next) {
        const int row = i / op.heads, head = i % op.heads;
        next = (row + 1) * op.heads < mine.end ? (row + 1) * op.heads : mine.end;
        attend<T>(op, view, row, head, head + next - i, scratch);
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
        default:
            switch (op.format) {
                case FLOAT32: attention<float>(op, job, scratch); break;
                case BFLOAT16: attention<Half>(op, job, scratch); break;
                default: attention<int8_t>(op, job, scratch); break;
            }
    }
}

#undef BIAS8
#undef BIAS4
#undef TILE
#undef MANY
