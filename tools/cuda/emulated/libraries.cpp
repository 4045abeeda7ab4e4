// The part of cuBLAS and cuRAND that candle uses, on memory of the emulated device. Products are summed in f32 (f64 of f64), and rounded once.
#include "prelude.hpp"

#include <random>

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };

template <typename T, typename A> int product(int ta, int tb, int m, int n, int k, A alpha, const void *a, int lda, long long sa, const void *b, int ldb, long long sb, A beta, void *c, int ldc, long long sc, int batch) {
    if (m < 0 || n < 0 || k < 0 || batch < 0 || ta < 0 || ta > 1 || tb < 0 || tb > 1 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m)) {
        return INVALID_VALUE;
    }
    for (long long i = 0; i < batch; i++) {
        const T *of_a = (const T *)a + i * sa, *of_b = (const T *)b + i * sb;
        T *to = (T *)c + i * sc;
        for (long long column = 0; column < n; column++) {
            for (long long row = 0; row < m; row++) {
                A sum = 0;
                for (long long d = 0; d < k; d++) {
                    sum += (A)of_a[ta ? row * lda + d : d * lda + row] * (A)of_b[tb ? d * ldb + column : column * ldb + d];
                }
                T &at = to[column * ldc + row];
                at = beta == 0 ? T(alpha * sum) : T(alpha * sum + beta * (A)at);
            }
        }
    }
    return SUCCESS;
}

template <typename T, typename D> int draw(void *of, T *to, size_t count, D spread) {
    for (size_t i = 0; i < count; i++) {
        to[i] = spread(*(std::mt19937_64 *)of);
    }
    return 0;
}
} // namespace

extern "C" {
int cublasCreate_v2(void **to) { return *to = malloc(1), SUCCESS; }
int cublasDestroy_v2(void *handle) { return free(handle), SUCCESS; }
int cublasSetStream_v2(void *, void *) { return SUCCESS; }
int cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int of_a, int lda, long long sa, const void *b, int of_b, int ldb, long long sb, const void *beta, void *c, int of_c, int ldc, long long sc, int batch, int compute, int) {
    // 64: sums and factors in f16. All others that there are for these types have factors in f32.
    if (of_a != of_b || of_a != of_c || (compute == 64) > (of_a == F16)) {
        return NOT_SUPPORTED;
    }
    float x = compute == 64 ? (float)*(__half *)alpha : *(float *)alpha, y = compute == 64 ? (float)*(__half *)beta : *(float *)beta;
    switch (of_a) {
    case F32:
        return product<float>(ta, tb, m, n, k, x, a, lda, sa, b, ldb, sb, y, c, ldc, sc, batch);
    case F16:
        return product<__half>(ta, tb, m, n, k, x, a, lda, sa, b, ldb, sb, y, c, ldc, sc, batch);
    case BF16:
        return product<__nv_bfloat16>(ta, tb, m, n, k, x, a, lda, sa, b, ldb, sb, y, c, ldc, sc, batch);
    default:
        return NOT_SUPPORTED;
    }
}
int cublasDgemmStridedBatched(void *, int ta, int tb, int m, int n, int k, const double *alpha, const double *a, int lda, long long sa, const double *b, int ldb, long long sb, const double *beta, double *c, int ldc, long long sc, int batch) {
    return product<double>(ta, tb, m, n, k, *alpha, a, lda, sa, b, ldb, sb, *beta, c, ldc, sc, batch);
}

int curandCreateGenerator(void **to, int) { return *to = new std::mt19937_64, 0; }
int curandDestroyGenerator(void *of) { return delete (std::mt19937_64 *)of, 0; }
int curandSetPseudoRandomGeneratorSeed(void *of, unsigned long long seed) { return ((std::mt19937_64 *)of)->seed(seed), 0; }
int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
int curandSetStream(void *, void *) { return 0; }
int curandGenerateUniform(void *of, float *to, size_t count) { return draw(of, to, count, std::uniform_real_distribution<float>()); }
int curandGenerateUniformDouble(void *of, double *to, size_t count) { return draw(of, to, count, std::uniform_real_distribution<double>()); }
// As cuRAND's own, these take even numbers of values alone.
int curandGenerateNormal(void *of, float *to, size_t count, float mean, float deviation) {
    return count % 2 ? 105 : draw(of, to, count, std::normal_distribution<float>(mean, deviation));
}
int curandGenerateNormalDouble(void *of, double *to, size_t count, double mean, double deviation) {
    return count % 2 ? 105 : draw(of, to, count, std::normal_distribution<double>(mean, deviation));
}
}
