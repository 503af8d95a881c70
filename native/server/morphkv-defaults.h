// What llama-server is with MorphKV where its user has said nothing: checkpoints, the model's name, errors.
#pragma once

#include "chat.h"

#include <cstdint>
#include <string>
#include <vector>

struct common_adapter_lora_info;
struct common_params;
struct server_routes;

// How many checkpoints of a slot there can be: as many as fit in an eighth of the machine's memory, all slots together, 4 to 32.
int32_t morphkv_n_checkpoints(uint64_t slot_bytes, int32_t n_slots);

// Where the first checkpoint of a text is worth to be made: behind it come as many user's messages as there can be checkpoints,
// less those that the last one has. 0 = anywhere.
int32_t morphkv_first_checkpoint(const common_chat_msg_spans & spans, int32_t n_checkpoints);

// A model that was given as a path is named by its file in the API: "Llama-3.2-3B-Q4_K_M".
void morphkv_name_model(common_params & params);

// Errors of routes advise what can be done with MorphKV. why_no_images: of a projector that will be left out, or "".
void morphkv_mend_errors(server_routes & routes, const std::string & why_no_images);

// Adapters and their scales, in words.
std::string morphkv_name_loras(const std::vector<common_adapter_lora_info> & loras);

// What a chat on disk is of: model, cache, archive and adapters, in words. Two models of one shape differ in bytes of the file,
// of which some are looked at.
std::string morphkv_name_settings(const common_params & params, const std::string & archive_type);
