// From logits to codes, for one instruction set: part of kernels.h.
//
// A row is one codebook of one song: logits of its branches, `stride` numbers a song and `gap` a codebook, and noise
// [row][in].  Scores have the bits of torch's, so what is kept is what torch keeps.

// Not inlined: a product that is fused with the sum which follows would not be rounded, as torch's is.
static __attribute__((noinline)) void differ(float* y, const float* x, const float* from, float scale, int count) {
    for (int i = 0; i < count; i += LANES) {
        int left = count - i < LANES ? count - i : LANES;
        store_some(y + i, (load_some(x + i, left) - load_some(from + i, left)) * scale, left);
    }
}

// Bits of floats, as numbers in the same order; and back.
INLINE int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
INLINE int32_t place_of(float x) { int32_t y; __builtin_memcpy(&y, &x, 4); return ordered(y); }
INLINE float float_at(int32_t place) { float y; place = ordered(place); __builtin_memcpy(&y, &place, 4); return y; }

// The k-th largest, or a number between it and the one below: half of all floats up to `top` are left out each time.
INLINE float bound(const float* x, int blocks, int k, float top) {
    int64_t low = place_of(-INFINITY), high = (int64_t)place_of(top) + 1;  // at least k are from low on, fewer from high on
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        Floats at = splat(float_at((int32_t)middle));
        Integers counts{};
        for (int b = 0; b < blocks; ++b) counts -= load(x + b * LANES) >= at;
        int count = 0;
        for (int i = 0; i < LANES; ++i) count += counts[i];
        if (count >= k) low = middle;
        else high = middle;
        if (count == k) break;
    }
    return float_at((int32_t)low);
}

// The first of those whose probability (of which a common factor doesn't matter) is the largest beside its noise; -1
// where logits are not finite.
INLINE int choose_one(const Op& op, const float* x, const float* null, const float* noise, float* scores) {
    const int blocks = (op.in + LANES - 1) / LANES;
    if (null) differ(scores, x, null, op.own_weight, op.in);
    Floats peak = splat(-INFINITY);
    Integers strange{};
    for (int b = 0; b < blocks; ++b) {
        int i = b * LANES, left = op.in - i < LANES ? op.in - i : LANES;
        Floats s = null ? load_some(null + i, left) + load_some(scores + i, left) : load_some(x + i, left);
        if (op.epsilon != 1.0f) s /= splat(op.epsilon);
        for (int j = left; j < LANES; ++j) s[j] = -INFINITY;
        strange |= s != s;
        peak = s > peak ? s : peak;
        store(scores + i, s);
    }
    const float top = largest(peak);
    int32_t any = 0;
    for (int j = 0; j < LANES; ++j) any |= strange[j];
    if (any || top == INFINITY || top == -INFINITY) return -1;
    const float least = op.width > 0 && op.width < op.in ? bound(scores, blocks, op.width, top) : -INFINITY;
    Floats best = splat(-1.0f);
    Integers where{}, here{};
    for (int j = 0; j < LANES; ++j) here[j] = j;
    for (int b = 0; b < blocks; ++b, here += LANES) {
        int i = b * LANES, left = op.in - i < LANES ? op.in - i : LANES;
        Floats s = load(scores + i), p = exponential(s - top);
        p = s < least ? Floats{} : p;
        p = s == -INFINITY ? Floats{} : p;
        p /= load_some(noise + i, left);  // beyond the last 0 / 0, which is larger than nothing
        where = p > best ? here : where;
        best = p > best ? p : best;
    }
    int found = 0;
    for (int j = 1; j < LANES; ++j)
        if (best[j] > best[found] || (best[j] == best[found] && where[j] < where[found])) found = j;
    return where[found];
}

static void choose(const Op& op, const Job& job, float* scores) {
    Share mine = share(job.rows, 1, job);
    for (int row = mine.begin; row < mine.end; ++row) {
        int64_t at = (int64_t)(row / op.heads) * op.stride + (int64_t)(row % op.heads) * op.gap;
        const float* null = op.second ? op.second + at : nullptr;
        ((int64_t*)op.bytes)[row] = choose_one(op, op.source + at, null, op.first + (int64_t)row * op.in, scores);
    }
}
