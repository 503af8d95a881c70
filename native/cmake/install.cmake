# What the wheel holds: morphkv_cpp/lib, bin, include and licenses.

# Every shared library target of a folder and of the folders below it.
function(morphkv_list_libraries dir out)
    get_property(targets DIRECTORY ${dir} PROPERTY BUILDSYSTEM_TARGETS)
    get_property(subdirs DIRECTORY ${dir} PROPERTY SUBDIRECTORIES)
    set(found)
    foreach(target ${targets})
        get_target_property(type ${target} TYPE)
        if (type MATCHES "^(SHARED|MODULE)_LIBRARY$")
            list(APPEND found ${target})
        endif()
    endforeach()
    foreach(subdir ${subdirs})
        morphkv_list_libraries(${subdir} below)
        list(APPEND found ${below})
    endforeach()
    set(${out} ${found} PARENT_SCOPE)
endfunction()

# All of ggml: which backends there are is decided by the GGML_* options.
morphkv_list_libraries(${MORPHKV_UPSTREAM_DIR}/ggml MORPHKV_GGML_LIBRARIES)
set(MORPHKV_LIBRARIES ${MORPHKV_GGML_LIBRARIES} llama)
foreach(kernels morphkv-cuda morphkv-hip)
    if (TARGET ${kernels})
        list(APPEND MORPHKV_LIBRARIES ${kernels})
    endif()
endforeach()
set(MORPHKV_PROGRAMS)
if (MORPHKV_BUILD_TOOLS)
    list(APPEND MORPHKV_LIBRARIES llama-common mtmd)
    foreach(program llama-server llama-bench llama-perplexity)
        list(APPEND MORPHKV_LIBRARIES ${program}-impl)
        list(APPEND MORPHKV_PROGRAMS ${program})
    endforeach()
    # Only there with GGML_RPC.
    if (TARGET ggml-rpc-server)
        list(APPEND MORPHKV_PROGRAMS ggml-rpc-server)
    endif()
endif()

foreach(target ${MORPHKV_LIBRARIES})
    # A wheel cannot hold symbolic links: one file libX.so instead of the chain libX.so -> libX.so.0 -> libX.so.0.5.0.
    set_property(TARGET ${target} PROPERTY VERSION)
    set_property(TARGET ${target} PROPERTY SOVERSION)
endforeach()

# Upstream would install its headers beside its libraries.
set_property(TARGET ${MORPHKV_LIBRARIES} PROPERTY PUBLIC_HEADER)
set_property(TARGET ${MORPHKV_LIBRARIES} PROPERTY PRIVATE_HEADER)

add_custom_target(morphkv ALL DEPENDS ${MORPHKV_LIBRARIES} ${MORPHKV_PROGRAMS})

# scikit-build-core installs into the wheel's root. Backends that are modules (GGML_BACKEND_DL) lie beside libggml, which
# searches its own folder.
set(MORPHKV_PACKAGE_DIR morphkv_cpp)
if (WIN32)
    set(MORPHKV_MODULE_DIR ${MORPHKV_PACKAGE_DIR}/bin)
else()
    set(MORPHKV_MODULE_DIR ${MORPHKV_PACKAGE_DIR}/lib)
endif()
install(TARGETS ${MORPHKV_LIBRARIES} ${MORPHKV_PROGRAMS}
    RUNTIME DESTINATION ${MORPHKV_PACKAGE_DIR}/bin
    LIBRARY DESTINATION ${MORPHKV_MODULE_DIR}
    ARCHIVE DESTINATION ${MORPHKV_PACKAGE_DIR}/lib)
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/include/ DESTINATION ${MORPHKV_PACKAGE_DIR}/include
    FILES_MATCHING PATTERN "*.h")
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${MORPHKV_PACKAGE_DIR}/licenses)
install(FILES ${MORPHKV_UPSTREAM_DIR}/LICENSE DESTINATION ${MORPHKV_PACKAGE_DIR}/licenses RENAME LICENSE-llama.cpp)
install(DIRECTORY ${MORPHKV_UPSTREAM_DIR}/licenses/ DESTINATION ${MORPHKV_PACKAGE_DIR}/licenses)

# The page of llama-server, in which Python shows a text too; beside the programs, as in the build's folder.
configure_file(${CMAKE_CURRENT_SOURCE_DIR}/server/page/page.html ${CMAKE_BINARY_DIR}/bin/morphkv-page.html COPYONLY)
install(FILES ${CMAKE_CURRENT_SOURCE_DIR}/server/page/page.html DESTINATION ${MORPHKV_PACKAGE_DIR}/bin
    RENAME morphkv-page.html)
