// The page of /morphkv, a chat that shows what the cache keeps: page/page.html. --no-ui leaves it out.
#pragma once

#include "server-http.h"

struct common_params;

server_http_context::handler_t morphkv_get_page(const common_params & params);
