// What scripts and tests ask of fake_cuda.cpp.
#pragma once

// A kernel's mangled name, its blocks, and pointers to its arguments.
typedef void (*fake_cuda_run)(const char * name, unsigned n_x, unsigned n_y, void ** args);

extern "C" {
long fake_cuda_launches();
long fake_cuda_copies();
void fake_cuda_set_run(fake_cuda_run f);
}
