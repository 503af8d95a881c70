# What llama-server shows at /: with MORPHKV_WEBUI upstream's page, which upstream's CMake builds with npm and embeds (and
# builds without when that fails: here that is an error); else ours, that of /morphkv.

if (MORPHKV_WEBUI)
    add_custom_target(morphkv-webui-check
        COMMAND ${CMAKE_COMMAND} -DUI_H=${CMAKE_BINARY_DIR}/llama.cpp/tools/ui/ui.h -P ${CMAKE_CURRENT_LIST_DIR}/check-webui.cmake
        VERBATIM)
    add_dependencies(morphkv-webui-check llama-ui-assets)
    add_dependencies(llama-ui morphkv-webui-check)
    return()
endif()

# Upstream's templates with one asset of ours, instead of those that upstream's script fills with none.
set(text_file ${CMAKE_CURRENT_SOURCE_DIR}/server/page/page.html)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${text_file})
file(READ ${text_file} text HEX)
string(REGEX REPLACE "(..)" "0x\\1," text "${text}")
file(SHA256 ${text_file} etag)
set(LLAMA_UI_HAS_ASSETS 1)
set(N_ASSETS 1)
set(USE_GZIP false)
set(ASSET_ARRAYS "static const unsigned char text[] = {${text}};")
set(ASSET_TABLE "    { \"index.html\", text, sizeof(text), \"\\\"${etag}\\\"\", \"text/html; charset=utf-8\" },")
set(text_dir ${CMAKE_CURRENT_BINARY_DIR}/webui)
foreach(name ui.h ui.cpp)
    configure_file(${MORPHKV_UPSTREAM_DIR}/tools/ui/${name}.in ${text_dir}/${name} @ONLY)
endforeach()
set_target_properties(llama-ui PROPERTIES
    SOURCES ${text_dir}/ui.cpp
    INCLUDE_DIRECTORIES ${text_dir}
    INTERFACE_INCLUDE_DIRECTORIES ${text_dir})
