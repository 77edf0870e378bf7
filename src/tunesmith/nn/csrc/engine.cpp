// A decode step on the CPU, as a list of operations that a few threads work through together.
//
// One token's step is a hundred small products; what it costs is reading the weights once, if nothing else is in the
// way: no dispatch between operations, no allocation, threads that meet at a spinning barrier.  nn/engine.py writes the
// list and says what each field means.  There is nothing of Python or torch in here.

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TUNESMITH_X86 1
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#endif

namespace {

enum Kind { NORM, QUANTISE, LINEAR, REMEMBER, PREPARE, ATTEND, GATES, CHOOSE };
enum Format { FLOAT32, BFLOAT16, INT8, INT4, FLOAT32_BY_INPUT, BFLOAT16_BY_INPUT, FLOAT32_PANELS, BFLOAT16_PANELS };
enum Activation { NONE, GELU, RELU, SILU, QUICK_GELU, GELU_TANH, ELU };

constexpr int LANES = 16;
constexpr int GROUP = 64;    // inputs that share a scale
constexpr int AHEAD = 4096;  // bytes of a weight that are fetched before their turn
constexpr int FAR = 4096;    // and of keys and values
constexpr int PANEL = 32;    // outputs side by side in a weight for many rows
constexpr int BLOCK = 240;   // rows that go through all of such a weight, before the next
constexpr int ALONE = 64;    // calls between two attempts to share work on a busy machine
constexpr int PATIENCE = 4;  // calls in a row in which threads mostly waited: a single one may be about fresh memory

struct Op {
    int32_t kind, format, in, out, activation, barrier, heads, width, stride, view, rows, taps, gap;
    float epsilon, own_weight, first_weight, second_weight;
    int64_t capacity;
    const float *source, *first, *second;
    float *target, *raw;
    const void* weight;
    const float *scales, *gain, *bias;
    int8_t* bytes;
    float* byte_scales;
    int32_t* byte_sums;
    void *keys, *values;
    float *key_scales, *value_scales;
};

struct View { const int32_t *sequence, *write, *start, *length, *leading, *apart; };

struct Job { int rows, thread, threads; const View* views; };

typedef uint16_t Half;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint8_t Bytes64 __attribute__((vector_size(64)));
typedef float FloatsAt __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint8_t Bytes64At __attribute__((vector_size(64), aligned(1), may_alias));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef Half HalvesAt __attribute__((vector_size(32), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE int32_t word(const int8_t* x) { int32_t y; std::memcpy(&y, x, 4); return y; }

namespace plain {
#include "kernels.h"
}

#ifdef TUNESMITH_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#define TUNESMITH_AVX2
namespace avx2 {
#include "kernels.h"
}
#undef TUNESMITH_AVX2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#define TUNESMITH_VNNI
namespace vnni {
#include "kernels.h"
}
#pragma GCC pop_options
#if __GNUC__ >= 10  // older ones don't know it
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
#define TUNESMITH_BF16
namespace bf16 {
#include "kernels.h"
}
#undef TUNESMITH_BF16
#pragma GCC pop_options
#endif
#undef TUNESMITH_VNNI
#endif

typedef void (*Execute)(const Op&, const Job&, float*);
struct Set { const char* name; Execute execute; };

std::vector<Set> supported() {
    std::vector<Set> sets;
#ifdef TUNESMITH_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
#if __GNUC__ >= 10
        if (__builtin_cpu_supports("avx512bf16")) sets.push_back({"avx512-bf16", bf16::execute});
#endif
        sets.push_back({"avx512-vnni", vnni::execute});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back({"avx2", avx2::execute});
#endif
    sets.push_back({"plain", plain::execute});
    return sets;
}

Set chosen = supported().front();

INLINE void pause() {
#ifdef TUNESMITH_X86
    __builtin_ia32_pause();
#endif
}

INLINE void yield() { std::this_thread::yield(); }

typedef std::chrono::steady_clock Clock;

// Wait until `done` says so: spin for a moment, for the others are nearly there, then let others run.  Returns the
// seconds beyond that moment: another program has the processor that should be working for us.
template <class Done>
INLINE double wait_until(Done done) {
    for (int spins = 0; spins < 4000; ++spins) {
        if (done()) return 0;
        pause();
    }
    const Clock::time_point began = Clock::now();
    while (!done()) yield();
    return std::chrono::duration<double>(Clock::now() - began).count();
}

struct Call { const Op* ops; int count, rows; const View* views; float* scratch; int64_t scratch_each; };

class Team {
  public:
    explicit Team(int threads) : threads_(threads) {
        for (int i = 1; i < threads; ++i) std::thread([this, i] { serve(i); }).detach();
    }

    int threads() const { return threads_; }

    // False on a machine so busy that threads mostly waited for each other lately: working alone is quicker then.
    bool worthwhile() { return alone_ == 0 || --alone_ == 0; }

    void run(const Call& call) {
        const Clock::time_point began = Clock::now();
        lost_ = 0;
        call_ = call;
        arrived_ = 0;
        working_ = threads_ - 1;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ticket_.fetch_add(1, std::memory_order_release);
        }
        if (sleepers_ > 0) wake_.notify_all();
        work(0);
        lost_ += wait_until([this] { return working_.load(std::memory_order_acquire) == 0; });
        const bool waited = lost_ > 0.5 * std::chrono::duration<double>(Clock::now() - began).count();
        waited_ = waited ? waited_ + 1 : 0;
        if (waited_ < PATIENCE) return;
        waited_ = 0;
        alone_ = ALONE;
    }

  private:
    void serve(int thread) {
        for (uint64_t seen = 0;;) {
            for (int spins = 0; spins < 20000 && ticket_.load(std::memory_order_acquire) == seen; ++spins) pause();
            if (ticket_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleepers_;
                wake_.wait(lock, [&] { return ticket_.load(std::memory_order_acquire) != seen; });
                --sleepers_;
            }
            ++seen;
            work(thread);
            working_.fetch_sub(1, std::memory_order_release);
        }
    }

    void work(int thread) {
        const Call call = call_;
        Job job{call.rows, thread, threads_, call.views};
        int64_t met = 0;
        for (int i = 0; i < call.count; ++i) {
            chosen.execute(call.ops[i], job, call.scratch + call.scratch_each * thread);
            if (call.ops[i].barrier && threads_ > 1) {
                met += threads_;
                arrived_.fetch_add(1, std::memory_order_acq_rel);
                double late = wait_until([&] { return arrived_.load(std::memory_order_acquire) >= met; });
                if (thread == 0) lost_ += late;
            }
        }
    }

    const int threads_;
    Call call_{};
    double lost_ = 0;  // seconds of the last call, of the calling thread
    int waited_ = 0;   // calls in a row of which most was waiting
    int alone_ = 0;    // calls to do without the team
    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> working_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

std::mutex team_mutex;
Team* team = nullptr;  // never destroyed: its threads wait in it

#if defined(__unix__) || defined(__APPLE__)
void forget_team() {  // a forked child has none of the threads
    team = nullptr;
    new (&team_mutex) std::mutex();
}
const int registered = pthread_atfork(nullptr, nullptr, forget_team);
#endif

}  // namespace

extern "C" {

int tunesmith_version() { return 6; }

const char* tunesmith_instructions() { return chosen.name; }

// Use another instruction set of this machine (for tests); 0 if it has none of that name.
int tunesmith_use(const char* name) {
    for (const Set& set : supported())
        if (!std::strcmp(set.name, name)) { chosen = set; return 1; }
    return 0;
}

// Work through the operations.  Calls from several threads at once don't wait for each other: the second works alone.
void tunesmith_run(const Op* ops, int count, int rows, const View* views, float* scratch, int64_t scratch_each, int threads) {
    Call call{ops, count, rows, views, scratch, scratch_each};
    std::unique_lock<std::mutex> lock(team_mutex, std::defer_lock);
    if (threads > 1 && lock.try_lock()) {
        if (!team || team->threads() != threads) team = new Team(threads);
        if (team->worthwhile()) {
            team->run(call);
            return;
        }
    }
    Job job{rows, 0, 1, views};
    for (int i = 0; i < count; ++i) chosen.execute(ops[i], job, scratch);
}

int64_t tunesmith_op_size() { return sizeof(Op); }

}  // extern "C"
