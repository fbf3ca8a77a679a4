/* SPDX-License-Identifier: Apache-2.0 */
/* Things worth telling that detectors find: counted always, told as rows within bounds. */
#pragma once
#include "builder.h"
#include "engine.h"

/* Takes a copy of the row and its attributes; the row's offset and size are set here. */
void finding_add(struct core *core, const struct finding_row *finding, const struct builder *attributes);
void findings_free(struct core *core);
