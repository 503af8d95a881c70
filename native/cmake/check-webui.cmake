# `cmake -DUI_H=... -P` this: fails where upstream's script embedded no page.
file(READ ${UI_H} header)
if (NOT header MATCHES "#define LLAMA_UI_HAS_ASSETS 1")
    message(FATAL_ERROR "MORPHKV_WEBUI=ON, and the page was not built: the reason is printed above, behind \"UI:\"")
endif()
