// Products of rows with weights of all formats, for one instruction set: part of kernels.h.

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

#undef BIAS8
#undef BIAS4
#undef TILE
#undef MANY
