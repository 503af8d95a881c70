# Sets MORPHKV_VERSION, which lives in pyproject.toml alone, and MORPHKV_UPSTREAM_VERSION, which lives in UPSTREAM.

get_filename_component(morphkv_pyproject ${CMAKE_CURRENT_LIST_DIR}/../../pyproject.toml ABSOLUTE)
get_filename_component(morphkv_pin       ${CMAKE_CURRENT_LIST_DIR}/../UPSTREAM ABSOLUTE)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${morphkv_pyproject} ${morphkv_pin})

file(STRINGS ${morphkv_pyproject} MORPHKV_VERSION REGEX "^version = \"[0-9.]+\"$")
string(REGEX MATCH "[0-9.]+" MORPHKV_VERSION "${MORPHKV_VERSION}")
file(STRINGS ${morphkv_pin} MORPHKV_UPSTREAM_VERSION REGEX "^VERSION=")
string(REPLACE "VERSION=" "" MORPHKV_UPSTREAM_VERSION "${MORPHKV_UPSTREAM_VERSION}")
