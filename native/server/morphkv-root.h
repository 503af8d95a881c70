// What stands at / where llama-server was built without its web page.
#pragma once

struct common_params;
struct server_http_context;

// To be called after the web page, if any, has been registered: the first handler of a path answers.
void morphkv_server_root(const common_params & params, server_http_context & http);
