// What a recall from a long archive costs. The text's first tokens are decoded, and the rest are said to have been: slots and pages
// hold random rows. Without arguments it runs a small one; with a number of archived tokens it prints what recalls of so many take,
// in 4 layers of an 8B, which lie there in a type:
//
//   test_recall_cost 100000 q8_0

#include "support/inside.h"

#include <cstdlib>
#include <ctime>
#include <numeric>

struct setup {
    int32_t   capacity;
    int32_t   n_archived;
    int32_t   n_head, n_head_kv, n_embd_head, n_layer;
    int32_t   n_threads;
    ggml_type type;  // of what is archived
};

// Slots with random tokens of a text whose evicted part is archived.
static context_ptr create_long(llama_model * model, const setup & s, std::mt19937 & rng) {
    auto params        = morphkv_params_default();
    params.capacity    = s.capacity;
    params.window      = 32;
    params.interval    = 128;
    params.prompt_room = 512;
    auto cparams       = context_params();
    cparams.n_ubatch   = 512;
    cparams.n_ctx      = 4096;
    cparams.n_threads = cparams.n_threads_batch = s.n_threads;
    auto res                                    = create(model, params, cparams);
    auto archive_params                         = morphkv_archive_params_default();
    archive_params.type_k = archive_params.type_v = s.type;
    CHECK(morphkv_archive_start(res.get(), &archive_params) == MORPHKV_STATUS_OK);
    while (stats(res).n_evictions == 0) {
        CHECK(decode(res, some_tokens(500, rng())) == 0);
    }
    decode_to_a_cut(res);

    auto & text = morphkv_inside::text(res);
    text.append(text.positions.next(), s.n_archived, false);
    text.note_cut(0);
    text.rotary_offset      = text.positions.next() - 2 * s.capacity;
    const int32_t first     = text.groups[0].first_recent();
    const int32_t n_distant = text.groups[0].shape.n_distant();
    auto &        side      = const_cast<morphkv_side &>(cache_of(res).get_side());
    for (const auto & layer : side.layers) {
        std::vector<int32_t> all;
        for (int32_t h = 0; h < layer.n_head_kv; ++h) {
            std::vector<int32_t> serials(first);
            std::iota(serials.begin(), serials.end(), 0);
            std::shuffle(serials.begin() + params.keep, serials.end(), rng);
            all.insert(all.end(), serials.begin(), serials.begin() + n_distant);
        }
        side.set_serials(layer, 0, all);
    }

    auto &                                 archive = archive_of(res);
    std::vector<morphkv_archive::page_ptr> pages;
    for (int i = 0; i < 256; ++i) {
        morphkv_page       page(archive.layout.page_bytes);
        std::vector<float> row(s.n_embd_head);
        const size_t       n_bytes = ggml_row_size(s.type, row.size());
        for (size_t at = 0; at < page.size(); at += n_bytes) {
            std::generate(row.begin(), row.end(), [&] { return (int32_t) rng() * 1e-9f; });
            morphkv_convert_rows(GGML_TYPE_F32, row.data(), s.type, page.data() + at, 1, row.size());
        }
        pages.push_back(std::make_shared<const morphkv_page>(std::move(page)));
    }
    std::vector<morphkv_archive::saved_page> saved;
    for (int32_t i = 0; i < first / morphkv_archive::N_PAGE; ++i) {
        saved.push_back({ pages[rng() % pages.size()], 0 });
    }
    morphkv_archive_header header;
    header.first    = 0;
    header.n_tokens = first / morphkv_archive::N_PAGE * morphkv_archive::N_PAGE;
    archive.load(header, std::move(saved), morphkv_page(archive.layout.page_bytes));
    CHECK(archive.n_held() == header.n_tokens);
    return res;
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    std::mt19937  rng(1);
    const bool    is_bench   = argc > 1;
    const int32_t n_archived = is_bench ? atoi(argv[1]) : 2000;
    const auto    type       = argc > 2 && std::string(argv[2]) == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    const setup   s          = is_bench ? setup{ 2048, n_archived, 32, 8, 128, 4, 2, type }
                                        : setup{ 64, n_archived, 4, 2, 32, 2, 1, GGML_TYPE_F16 };

    tiny_shape shape{ s.n_head, s.n_head_kv, s.n_embd_head, "llama", s.n_layer };
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_long(model.get(), s, rng);
    const auto p     = morphkv_recall_params_default();
    for (int i = 0; i < (is_bench ? 5 : 2); ++i) {
        auto & text = morphkv_inside::text(ctx);
        text.append(text.positions.next(), 16, false);  // as if as many had been decoded since the last
        morphkv_recalled got{};
        got.size              = sizeof(got);
        const clock_t t_start = clock();
        CHECK(morphkv_recall(ctx.get(), 0, &p, &got) == MORPHKV_STATUS_OK);
        const double cpu_ms = (clock() - t_start) * 1000.0 / CLOCKS_PER_SEC;
        if (is_bench) {
            printf(
                "recall %d of %d tokens, %d layers: %.1f ms, of these %.1f to ask; %.1f of all cores; %d rows came\n",
                i, n_archived, s.n_layer, got.took_ms, got.ask_ms, cpu_ms, (int) got.n_recalled);
            fflush(stdout);
        }
        // pages came, each token once in a head
        const auto kept = retained(ctx, 0, 0);
        CHECK(got.n_recalled > 0);
        for (int32_t h = 0; h < s.n_head_kv; ++h) {
            const auto           begin = kept.begin() + h * (s.capacity - 32);
            std::vector<int32_t> sorted(begin, begin + s.capacity - 32);
            std::sort(sorted.begin(), sorted.end());
            CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
        }
    }
    return 0;
}
