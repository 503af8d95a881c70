// Images and sound in llama-server: which cannot be served with a cache of constant size.
#pragma once

#include "morphkv.h"

#include "morphkv-counts.h"

#include <string>

struct llama_context;
struct mtmd_context;
struct server_tokens;

// Adds the images and sounds of a prompt behind its first n_past tokens.
void morphkv_count_media(const server_tokens & tokens, int32_t n_past, morphkv_counts & counts);

// By its file's header. "" where its images can be served, and where the file cannot be read, which llama.cpp will say.
std::string morphkv_why_not_projector(const std::string & path);

// "" where each image of a prompt fits: those whose tokens attend to each other both ways come in one piece.
std::string morphkv_why_not_media(const server_tokens & tokens, const mtmd_context * mctx, const llama_context * ctx,
                                  const morphkv_params & params);
