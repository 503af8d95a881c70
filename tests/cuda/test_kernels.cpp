// libmorphkv-cuda by the fake runtime, which counts what it starts and copies, and here runs its blocks on the host: whether
// table, scratch memory and grids are right, for an 8B's layers and one or four sequences.
//
//   make cuda-kernels

#include "cuda/kernels-host.h"
#include "fake_cuda.h"
#include "native/support/check.h"
#include "native/support/plain_evictions.h"

#include <cstdio>

namespace {

bool is_run = false;

// morphkv_kernel<N>(args)
void run_on_host(const char * name, unsigned n_x, unsigned n_y, void ** args) {
    const char * found = strstr(name, "morphkv_kernelILi");
    CHECK(found && n_y > 0);
    if (is_run) {
        morphkv_run_launch(found[strlen("morphkv_kernelILi")] - '0', *(const morphkv_kernels_args **) args[0], n_x,
                           n_y);
    }
}

struct shape {
    int32_t n_layers, n_head_kv, n_group, n_embd_head;
    int32_t n_distant, n_grad, n_window, n_votes;
};

plain_layer a_layer(std::mt19937 & rng, const shape & n, int32_t i_cut) {
    plain_layer res{};
    res.i_cut       = i_cut;
    res.type_k      = GGML_TYPE_F16;
    res.type_v      = GGML_TYPE_F16;
    res.n_embd_head = res.n_embd_head_v = n.n_embd_head;
    res.n_head_kv                       = n.n_head_kv;
    res.n_group                         = n.n_group;
    res.n_readers                       = 1;
    res.scale                           = 1.0f / std::sqrt((float) n.n_embd_head);

    const int32_t n_cells = n.n_distant + n.n_grad + n.n_window;
    const auto    halves  = [&](size_t n_values) {
        std::vector<uint16_t> halves(n_values);
        for (auto & x : halves) {
            x = (rng() & 0x8000) | (0x3800 + rng() % 0x0800);  // 0.5 to 2
        }
        return halves;
    };
    const auto as_bytes = [](const std::vector<uint16_t> & x) {
        return std::vector<char>((const char *) x.data(), (const char *) (x.data() + x.size()));
    };
    res.k    = as_bytes(halves((size_t) n_cells * n.n_head_kv * n.n_embd_head));
    res.v    = as_bytes(halves((size_t) n_cells * n.n_head_kv * n.n_embd_head));
    res.ring = halves((size_t) n.n_votes * res.n_head() * n.n_embd_head);
    for (int32_t i = 0; i < n.n_head_kv * n.n_distant; ++i) {
        res.serial.push_back(i % n.n_distant);
    }
    return res;
}

// One call of the library for so many sequences; returns launches and copies.
std::pair<long, long> run(const shape & n, int32_t n_seq, bool check) {
    std::mt19937             rng(1);
    std::vector<plain_cut>   cuts(n_seq);
    std::vector<plain_layer> layers;
    for (int32_t i = 0; i < n_seq; ++i) {
        cuts[i].shape  = { 4, n.n_distant, n.n_grad, n.n_window, n.n_votes };
        cuts[i].policy = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_SUM, 0.0f };
        for (int32_t j = 0; j < n.n_votes; ++j) {
            cuts[i].vote_rows.push_back(j);
        }
        for (int32_t j = 0; j < n.n_grad; ++j) {
            cuts[i].graduates.push_back(100000 + j);
        }
        for (int32_t j = 0; j < n.n_layers; ++j) {
            layers.push_back(a_layer(rng, n, i));
        }
    }
    const auto                         before = layers;
    std::vector<morphkv_kernels_cut>   k_cuts;
    std::vector<morphkv_kernels_layer> k_layers;
    for (const auto & cut : cuts) {
        const auto & s = cut.shape;
        k_cuts.push_back({ s.n_keep, s.n_distant, s.n_grad, s.n_window, s.n_votes, false, false, 0.0f,
                           cut.vote_rows.data(), cut.graduates.data() });
    }
    for (auto & l : layers) {
        k_layers.push_back(plain_in_place(l));
    }
    is_run              = check;
    const long launches = fake_cuda_launches(), copies = fake_cuda_copies();
    int32_t    has_changed = false;
    CHECK(!morphkv_kernels_run(k_cuts.data(), k_layers.data(), k_layers.size(), &has_changed) && has_changed);

    for (size_t i = 0; check && i < layers.size(); ++i) {
        const auto &       cut   = cuts[layers[i].i_cut];
        const auto         votes = plain_votes(before[i], cut);
        std::vector<float> scores(votes.begin(), votes.end());
        plain_layer        expected = before[i];
        plain_evict(expected, cut, scores.data(), scores.data());
        // random rows have no near-ties here
        CHECK(layers[i].serial == expected.serial && layers[i].k == expected.k && layers[i].v == expected.v);
    }
    return { fake_cuda_launches() - launches, fake_cuda_copies() - copies };
}

}  // namespace

int main() {
    CHECK(morphkv_kernels_version() == MORPHKV_KERNELS_VERSION && strcmp(morphkv_kernels_registry(), "CUDA") == 0);
    fake_cuda_set_run(run_on_host);
    // the fake runtime has one device, on which all pointers are
    const char anywhere = 0;
    CHECK(morphkv_kernels_n_bytes(&anywhere) == 0);
    run({ 3, 2, 3, 80, 70, 30, 9, 11 }, 3, /*check =*/true);
    run({ 2, 1, 128, 64, 600, 90, 40, 2 }, 1, /*check =*/true);

    for (const int32_t n_seq : { 1, 4 }) {
        const auto [launches, copies] = run({ 32, 8, 4, 128, 2016, 128, 32, 32 }, n_seq, /*check =*/false);
        printf("8B, %d sequences: %ld launches, %ld copies\n", n_seq, launches, copies);
        CHECK(launches <= 6 && copies <= 2);
        const size_t n_bytes = morphkv_kernels_n_bytes(&anywhere);
        printf("8B, %d sequences: %.1f MiB of scratch memory\n", n_seq, n_bytes / 1048576.0);
        CHECK(n_bytes > n_seq * (2u << 20) && n_bytes < n_seq * (8u << 20));
    }
    return 0;
}
