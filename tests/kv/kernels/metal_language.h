// Declarations with which clang accepts Metal source as C++ for OpenCL, a language with the same address spaces and
// the same keyword half. Nothing is defined: only the syntax is checked.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define threadgroup __local
#define thread __private
typedef char int8_t;
typedef long int64_t;
typedef half bfloat16_t;
namespace metal {
struct Half2 {
    half x, y;
    Half2() = default;
    Half2(half a, half b) : x(a), y(b) {}
};
Half2 operator+(Half2 a, Half2 b);
Half2 fma(Half2 a, Half2 b, Half2 c);
enum class mem_flags { mem_device, mem_threadgroup };
mem_flags operator|(mem_flags a, mem_flags b);
void threadgroup_barrier(mem_flags flags);
void simdgroup_barrier(mem_flags flags);
float simd_shuffle_xor(float x, ushort step);
uint simd_shuffle_xor(uint x, ushort step);
float simd_shuffle(float x, ushort lane);
float simd_sum(float x);
bool simd_any(bool x);
namespace fast {
float exp2(float x);
float log2(float x);
}  // namespace fast
}  // namespace metal
#define half2 metal::Half2
template <typename To, typename From>
To as_type(From x);
