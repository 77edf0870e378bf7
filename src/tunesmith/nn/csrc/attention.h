// Attention over what is remembered, for one instruction set: part of kernels.h.
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
INLINE void remember_key(const Op& op, const View& view, int row, int head, int8_t* bytes) {
    const int64_t block = block_of(op, view, row, head, view.write[row]);
    const int place = view.write[row] % LANES;
    const float* key = op.source + (int64_t)row * op.stride + (int64_t)head * op.width;
    if constexpr (sizeof(T) > 1) {
        T* keys = (T*)op.keys + block * LANES * op.width + place;
        for (int i = 0; i < op.width; ++i) put(keys + i * LANES, key[i]);
    } else {
        int8_t* keys = (int8_t*)op.keys + block * LANES * even(op.width) + place * 2;
        int32_t sum;
        quantise_group(key, op.width, bytes, op.key_scales + block * LANES + place, &sum);
        for (int i = 0; i < op.width; i += 2) __builtin_memcpy(keys + i * LANES, bytes + i, 2);
    }
}

template <class T>
INLINE void remember_value(const Op& op, const View& view, int row, int head, int8_t* bytes) {
    const int64_t block = block_of(op, view, row, head, view.write[row]);
    const int place = view.write[row] % LANES, wide = (op.width + LANES - 1) / LANES * LANES;
    const float* value = op.second + (int64_t)row * op.stride + (int64_t)head * op.width;
    if constexpr (sizeof(T) > 1) {
        T* values = (T*)op.values + (block * LANES + place) * wide;
        for (int i = 0; i < op.width; ++i) put(values + i, value[i]);
    } else {
        int8_t* values = (int8_t*)op.values + (block * LANES + place / 2 * 2) * wide;
        const int mine = place % 2 * 8, others = 0xff00 >> mine;  // of the 16 bits that two places share
        int32_t sum;
        quantise_group(value, op.width, bytes, op.value_scales + block * LANES + place, &sum);
        for (int i = 0; i < op.width; ++i) {
            uint16_t both;
            __builtin_memcpy(&both, values + 2 * i, 2);
            both = (uint16_t)((both & others) | (uint8_t)bytes[i] << mine);
            __builtin_memcpy(values + 2 * i, &both, 2);
        }
    }
}

template <class T>
INLINE void remember(const Op& op, const View& view, int row, int head, int8_t* bytes) {
    if (view.write[row] < 0) return;
    remember_key<T>(op, view, row, head, bytes);
    remember_value<T>(op, view, row, head, bytes);
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

// What a row sees with heads `first` to `last`, block by block as it lies in memory.  Where each row has a sequence of its
// own, and `source` and `second` are there, its key and value are written when their block comes by.
template <class T>
INLINE void attend(const Op& op, const View& view, int row, int first, int last, float* scratch) {
    constexpr bool few = sizeof(T) == 1;
    const int count = view.length[row], blocks = (count + LANES - 1) / LANES, heads = last - first;
    const int width = few ? even(op.width) : op.width, wide = (op.width + LANES - 1) / LANES * LANES;
    float* out = op.target + ((int64_t)row * op.heads + first) * op.width;
    const int block = view.write[row] / LANES - view.start[row] / LANES;
    const bool writes = op.source && *view.apart && view.write[row] >= 0, inside = writes && block >= 0 && block < blocks;
    for (int h = first; writes && !inside && h < last; ++h) remember<T>(op, view, row, h, (int8_t*)scratch);
    for (int i = 0; !count && i < heads * op.width; ++i) out[i] = 0;
    if (!count) return;
    const int due = inside ? block : -1;
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
            if (b == due) {
                remember_key<T>(op, view, row, first + h, (int8_t*)sums(h));
                for (int byte = 0; byte < value_size * (int)sizeof(T); byte += 64) fetch((const char*)(values + at * value_size) + byte);
            }
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
        if (due >= 0) remember_value<T>(op, view, row, first + h, (int8_t*)sums(h));
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
    if (op.kind == PREPARE && *view.apart) return;
    for (int i = mine.begin, next; i < mine.end; i = next) {
        const int row = i / op.heads, head = i % op.heads;
        next = (row + 1) * op.heads < mine.end ? (row + 1) * op.heads : mine.end;
        if (op.kind == ATTEND) attend<T>(op, view, row, head, head + next - i, scratch);
        else for (int h = head; h < head + next - i; ++h) remember<T>(op, view, row, h, (int8_t*)scratch);
    }
}
