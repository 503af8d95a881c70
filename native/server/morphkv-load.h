// How far a model is loaded, on a terminal.
#pragma once

struct common_params;

// Where nobody else is told, and standard error is a terminal.
void morphkv_tell_load(common_params & params);
