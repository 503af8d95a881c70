#include "morphkv-root.h"

#include "common.h"
#include "server-http.h"

static const char * const TEXT =
    "llama-server with MorphKV, without a web page.\n"
    "\n"
    "OpenAI-compatible clients: the base URL is this address with /v1, e.g. POST /v1/chat/completions\n"
    "State: /health /props /slots, and with --metrics /metrics\n";

void morphkv_server_root(const common_params & params, server_http_context & http) {
    if (!params.morphkv.enabled) {
        return;
    }
    http.get("/", [](const server_http_req &) {
        auto res          = std::make_unique<server_http_res>();
        res->status       = 200;
        res->content_type = "text/plain; charset=utf-8";
        res->data         = TEXT;
        return res;
    });
}
