# The page of /morphkv as an array of bytes, which server/morphkv-page.cpp includes.
get_filename_component(morphkv_page ${CMAKE_CURRENT_LIST_DIR}/../server/page/page.html ABSOLUTE)
get_filename_component(morphkv_page_source ${CMAKE_CURRENT_LIST_DIR}/../server/morphkv-page.cpp ABSOLUTE)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${morphkv_page})
file(READ ${morphkv_page} morphkv_page_bytes HEX)
string(REGEX REPLACE "(..)" "0x\\1," morphkv_page_bytes "${morphkv_page_bytes}")
set(morphkv_page_dir ${CMAKE_CURRENT_BINARY_DIR}/morphkv-page)
file(CONFIGURE OUTPUT ${morphkv_page_dir}/morphkv-page-bytes.h
    CONTENT "static const unsigned char morphkv_page_bytes[] = { @morphkv_page_bytes@ };\n" @ONLY)
set_property(SOURCE ${morphkv_page_source} TARGET_DIRECTORY server-context
    APPEND PROPERTY INCLUDE_DIRECTORIES ${morphkv_page_dir})
