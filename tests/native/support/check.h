// CHECK(condition): says where and stops. Alive in release builds.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #x);                                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
