// Metal in C++: the threads of a threadgroup are fibers, scheduled in turn and synchronised at simd-group operations
// and barriers. Runs the kernels' unchanged source without a GPU.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define device
#define threadgroup
#define thread
#define constant

using uint = uint32_t;
using ushort = uint16_t;
using uchar = uint8_t;
#define half _Float16  // a keyword: no name may be the same
struct bfloat16_t {
    uint16_t bits;
    bfloat16_t() = default;
    bfloat16_t(float x) {
        uint32_t u;
        memcpy(&u, &x, 4);
        bits = uint16_t((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
    }
    operator float() const {
        uint32_t u = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &u, 4);
        return x;
    }
};

struct half2 {
    half x, y;
    half2() = default;
    half2(half a, half b) : x(a), y(b) {}
};
inline half2 operator+(half2 a, half2 b) { return half2(half(float(a.x) + float(b.x)), half(float(a.y) + float(b.y))); }
inline half2 fma(half2 a, half2 b, half2 c) {
    return half2(half(double(a.x) * double(b.x) + double(c.x)), half(double(a.y) * double(b.y) + double(c.y)));
}

namespace shim {

constexpr int SIMD = 32;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    long simd_phase = 0;
    long group_phase = 0;
    float value = 0;
    uint operands[6] = {};
    bool done = false;
};

struct Threadgroup {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    int current = 0;
    int x = 0, y = 0, groups_x = 0, groups_y = 0;
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;
};

inline Threadgroup* running = nullptr;

inline Fiber& self() { return running->fibers[running->current]; }
inline void yield() { swapcontext(&self().context, &running->scheduler); }

inline void meet(long Fiber::*phase, int first, int count) {
    const long mine = ++(self().*phase);
    for (int i = first; i < first + count; i++) {
        while (running->fibers[i].*phase < mine && !running->fibers[i].done) yield();
    }
}

inline int simd_first() { return running->current / SIMD * SIMD; }
inline void meet_simd() { meet(&Fiber::simd_phase, simd_first(), SIMD); }

// Publish a value per lane; all lanes read before any writes the next one.
template <typename F>
float exchange(float x, F&& read) {
    self().value = x;
    meet_simd();
    const float result = read(simd_first());
    meet_simd();
    return result;
}

inline void enter() {
    running->kernel(running->arguments);
    self().done = true;
    yield();
}

inline void run(void (*kernel)(void**), void** arguments, int groups_x, int groups_y, int threads) {
    Threadgroup group;
    group.fibers.resize(threads);
    for (auto& fiber : group.fibers) fiber.stack.resize(256 * 1024);
    running = &group;
    for (int y = 0; y < groups_y; y++) {
        for (int x = 0; x < groups_x; x++) {
            group.x = x;
            group.y = y;
            group.groups_x = groups_x;
            group.groups_y = groups_y;
            group.kernel = kernel;
            group.arguments = arguments;
            for (auto& fiber : group.fibers) {
                fiber.simd_phase = fiber.group_phase = 0;
                fiber.done = false;
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = fiber.stack.data();
                fiber.context.uc_stack.ss_size = fiber.stack.size();
                fiber.context.uc_link = nullptr;
                makecontext(&fiber.context, enter, 0);
            }
            for (bool left = true; left;) {
                left = false;
                for (int i = 0; i < threads; i++) {
                    if (group.fibers[i].done) continue;
                    group.current = i;
                    swapcontext(&group.scheduler, &group.fibers[i].context);
                    left = true;
                }
            }
        }
    }
    running = nullptr;
}

struct Index {
    int x, y, z;
};

}  // namespace shim

#define thread_position_in_threadgroup (shim::Index{shim::running->current, 0, 0})
#define thread_index_in_simdgroup (shim::running->current % shim::SIMD)
#define simdgroup_index_in_threadgroup (shim::running->current / shim::SIMD)
#define threadgroup_position_in_grid (shim::Index{shim::running->x, shim::running->y, 0})
#define threadgroups_per_grid (shim::Index{shim::running->groups_x, shim::running->groups_y, 1})

namespace metal {

enum class mem_flags { mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline void threadgroup_barrier(mem_flags) {
    shim::meet(&shim::Fiber::group_phase, 0, int(shim::running->fibers.size()));
}

inline void simdgroup_barrier(mem_flags) { shim::meet_simd(); }

inline float simd_shuffle_xor(float x, ushort step) {
    const int from = shim::running->current % shim::SIMD ^ step;
    return shim::exchange(x, [=](int first) { return shim::running->fibers[first + from].value; });
}
inline uint simd_shuffle_xor(uint x, ushort step) {
    float carried;
    memcpy(&carried, &x, 4);
    carried = simd_shuffle_xor(carried, step);
    memcpy(&x, &carried, 4);
    return x;
}
inline float simd_shuffle(float x, ushort lane) {
    return shim::exchange(x, [=](int first) { return shim::running->fibers[first + lane].value; });
}
inline float simd_sum(float x) {
    return shim::exchange(x, [](int first) {
        float sum = 0;
        for (int i = 0; i < shim::SIMD; i++) sum += shim::running->fibers[first + i].value;
        return sum;
    });
}
inline bool simd_any(bool x) {
    return shim::exchange(x ? 1.0f : 0.0f, [](int first) {
        float any = 0;
        for (int i = 0; i < shim::SIMD; i++) any += shim::running->fibers[first + i].value;
        return any;
    }) > 0;
}

namespace fast {
inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
}  // namespace fast
inline float fabs(float x) { return std::fabs(x); }
inline float sqrt(float x) { return std::sqrt(x); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline int min(int a, int b) { return a < b ? a : b; }

}  // namespace metal

template <typename To, typename From>
To as_type(From x) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the bits");
    To y;
    memcpy(&y, &x, sizeof(y));
    return y;
}

// What only CUDA kernels use. Tensor-core operations: an m16n8k16 or m16n8k8 product of halves, and the transpose of 8 x 8.
inline void tq_matmul(float (&d)[4], const uint (&a)[4], uint b_low, uint b_high) {
    const uint operands[6] = {a[0], a[1], a[2], a[3], b_low, b_high};
    memcpy(shim::self().operands, operands, sizeof(operands));
    shim::meet_simd();
    const int first = shim::simd_first();
    const int lane = shim::running->current % shim::SIMD;
    float sums[4];
    for (int i = 0; i < 4; i++) {
        sums[i] = d[i];
        const int row = lane / 4;
        const int column = 2 * (lane % 4) + i % 2;
        for (int part = 0; part < 2; part++) {
            for (int c = 0; c < 4; c++) {
                const half2 x = as_type<half2>(shim::running->fibers[first + 4 * row + c].operands[2 * part + i / 2]);
                const half2 y = as_type<half2>(shim::running->fibers[first + 4 * column + c].operands[4 + part]);
                sums[i] += float(x.x) * float(y.x) + float(x.y) * float(y.y);
            }
        }
    }
    shim::meet_simd();
    memcpy(d, sums, sizeof(sums));
}
inline void tq_matmul_8(float (&d)[4], const uint (&a)[2], uint b, const float (&c)[4]) {
    float sums[4] = {c[0], c[1], c[2], c[3]};
    const uint whole[4] = {a[0], a[1], 0, 0};
    tq_matmul(sums, whole, b, 0);
    memcpy(d, sums, sizeof(sums));
}
#define TQ_NO_UNROLL
inline float tq_fast_rsqrt(float x) { return 1 / std::sqrt(x); }
inline int tq_add_squares(uint word, int sum) {
    for (int i = 0; i < 4; i++) sum += int(int8_t(word >> (8 * i))) * int8_t(word >> (8 * i));
    return sum;
}
inline int tq_least_of_3(int a, int b, int c) { return std::min(std::min(a, b), c); }
inline uint tq_transpose(uint x) {
    shim::self().operands[0] = x;
    shim::meet_simd();
    const int lane = shim::running->current % shim::SIMD;
    uint y = 0;
    for (int i = 0; i < 2; i++) {
        const int from = (2 * (lane % 4) + i) * 4 + lane / 4 / 2;
        y |= (shim::running->fibers[shim::simd_first() + from].operands[0] >> (lane / 4 % 2 * 16) & 0xFFFFu) << (16 * i);
    }
    shim::meet_simd();
    return y;
}
inline uint tq_equal(uint a, uint b) {
    const half2 x = as_type<half2>(a), y = as_type<half2>(b);
    return (x.x == y.x ? 0x3c00u : 0u) | (x.y == y.y ? 0x3c000000u : 0u);
}
inline uint tq_byte_products(uint x, uint low, uint high, uint more) { return (x & 255u) * low + (x >> 8 & 255u) * high + more; }
inline uint tq_lows(uint a, uint b) { return (a & 0xFFFFu) | b << 16; }
inline uint tq_halves_apart(uint a, uint b) { return (a & 0xFFFFu) | (b & 0xFFFF0000u); }
inline uint tq_highs(uint a, uint b) { return a >> 16 | (b & 0xFFFF0000u); }
inline uint tq_bytes_in_turn(uint a, uint b, int k) {
    a >>= 8 * k;
    b >>= 8 * k;
    return (a & 255u) | (b & 255u) << 8 | (a & 0xFF00u) << 8 | (b & 0xFF00u) << 16;
}
template <typename S>
uint tq_halves_of(uint bits) {
    if (std::is_same<S, half>::value) return bits;
    const auto limited = [](float x) { return half(x - x == 0 ? std::fmin(std::fmax(x, -65504.0f), 65504.0f) : x); };
    return as_type<uint>(half2(limited(as_type<float>(bits << 16)), limited(as_type<float>(bits & 0xFFFF0000u))));
}
inline uint tq_shuffle(uint x, int lane) { return as_type<uint>(metal::simd_shuffle(as_type<float>(x), ushort(lane))); }
template <int FIRST, int SECOND, int HALF>
uint tq_at_bytes(const uint* column, uint word) {
    const uint both = word >> (16 * HALF);
    return column[((both & 255u) * FIRST + (both >> 8 & 255u) * SECOND) / 4];
}
template <int COLUMNS>
uint tq_at_byte(const uint* column, uint word, int byte) {
    return column[(word >> (8 * byte) & 255u) * COLUMNS];
}
template <int BYTES>
void tq_load_early(const void* from, uint* out) {
    out[0] = 0;
    memcpy(out, from, BYTES);
}
inline void tq_prefetch(const void*) {}

// Threadgroups run one after another, so fences and atomics are not needed.
inline bool tq_is_last(uint* counter, int count) {
    *counter = *counter == uint(count) - 1 ? 0 : *counter + 1;
    return *counter == 0;
}
