#pragma once

// Everything: (seq ids, lengths) -> CacheDescriptor -> FlashInferPackedData -> BatchAttention ->
// out.
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/dlpack.h"
#include "seqattn/error.h"
#include "seqattn/float8.h"
#include "seqattn/half.h"
#include "seqattn/head_id_generator.h"
#include "seqattn/packed_data.h"
#include "seqattn/page_pool.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/prefix_cache.h"
#include "seqattn/sequence_state.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"
#include "seqattn/version.h"
