// The page of /morphkv: one file, compiled in.
#include "morphkv-page.h"

#include "common.h"
#include "morphkv-page-bytes.h"
#include "server-common.h"

server_http_context::handler_t morphkv_get_page(const common_params & params) {
    return [&params](const server_http_req &) {
        auto res = std::make_unique<server_http_res>();
        if (!params.ui) {
            const json error = format_error_response("File Not Found", ERROR_TYPE_NOT_FOUND);
            res->status      = 404;
            res->data        = safe_json_to_str({ { "error", error } });
            return res;
        }
        res->content_type             = "text/html; charset=utf-8";
        res->headers["Cache-Control"] = "no-cache";
        res->data.assign((const char *) morphkv_page_bytes, sizeof(morphkv_page_bytes));
        return res;
    };
}
