#include "morphkv-load.h"

#include "common.h"
#include "ggml.h"

#include <cstdio>

#ifdef _WIN32
#include <io.h>
#define isatty _isatty
#define fileno _fileno
#else
#include <unistd.h>
#endif

static constexpr int64_t AFTER_US  = 500000;  // what is loaded before is not told
static constexpr int64_t PERIOD_US = 100000;

static bool show_load(float progress, void *) {
    static int64_t t_start = 0;
    static int64_t t_shown = 0;
    const int64_t  now     = ggml_time_us();
    if (t_start == 0) {
        t_start = now;
    }
    if (progress >= 1.0f) {
        if (t_shown > 0) {
            fprintf(stderr, "\r\x1b[K");
        }
        t_start = t_shown = 0;
    } else if (now - t_start >= AFTER_US && now - t_shown >= PERIOD_US) {
        t_shown = now;
        fprintf(stderr, "\rloading the model: %d%%\x1b[K", (int) (100 * progress));
    }
    fflush(stderr);
    return true;
}

void morphkv_tell_load(common_params & params) {
    if (!params.load_progress_callback && isatty(fileno(stderr))) {
        params.load_progress_callback = show_load;
    }
}
