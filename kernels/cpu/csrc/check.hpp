// Whether a program can run over a batch.
#pragma once
#include "upwell.h"

// An upwell_status.
int check(const upwell_instr* program, int64_t count, const upwell_batch* batch);
