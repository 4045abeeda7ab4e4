// Kernels by name, with what calls them on the addresses of their arguments, as cuLaunchKernel is handed them.
#pragma once
#include <utility>

extern "C" void emulated_kernel(const char *name, void (*call)(void *));

template <auto F> struct Caller;
template <typename... A, void (*F)(A...)> struct Caller<F> {
    template <size_t... I> static void spread(void **at, std::index_sequence<I...>) { F(*(std::remove_cv_t<A> *)at[I]...); }
    static void call(void *arguments) { spread((void **)arguments, std::index_sequence_for<A...>()); }
};

#define KERNEL(name, kernel) static bool kernel_##name = (emulated_kernel(#name, Caller<kernel>::call), true);
