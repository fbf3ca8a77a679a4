/* SPDX-License-Identifier: Apache-2.0 */
/* Histograms, one per process, metric and set of attributes. */
#pragma once
#include "engine.h"

/* Counts a span; returns its row, or UINT32_MAX. `attributes` is the span's list. */
uint32_t series_add(struct core *core, uint32_t tgid, enum metric_id metric, enum span_kind kind,
                    const uint8_t *attributes, uint32_t size, uint64_t start_ktime, double value);
/* Drops the series of processes that are gone. */
void series_forget(struct core *core);
void series_free(struct core *core);
