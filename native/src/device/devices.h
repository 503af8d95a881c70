// Devices that layers can live on: those of RPC servers and the local GPUs.
#pragma once

#include "ggml-backend.h"

#include <string>
#include <vector>

// Loads backends that are modules (GGML_BACKEND_DL), unless there is one, as llama_backend_init() does. Before all else here.
void morphkv_load_backends();

// servers: "HOST:PORT", several separated by commas. They join no registry: another model does not see them.
// Throws morphkv_error where this build has no RPC or a server has no device; ggml ends the process where none answers.
std::vector<ggml_backend_dev_t> morphkv_devices_of_servers(const std::string & servers);

// What llama.cpp uses where llama_model_params.devices names none: GPUs, or integrated ones where there is no other.
std::vector<ggml_backend_dev_t> morphkv_local_gpus();
