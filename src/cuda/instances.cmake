# The attention kernels that are compiled, one line an instance: <fa2|fa3> <dtype> <head_dim> <mask>
# <plain|general>. From this list come the sources, the tables that dispatch and the text of
# UnsupportedError. General kernels take a window and a soft cap at run time. FA2 needs a general
# instance for custom masks of every dtype and head_dim; FA3 is an addition for long queries on sm_90a,
# with masks none and causal. head_dim is 64, 128 or 256. Lines "decode <dtype of queries> <dtype of the
# cache> <head_dim> <8|16 query rows>" are our own kernel for short queries on sm_90a, an addition too. A cache of 8 bits
# takes the instances of the type of its queries: pages that decode does not read are widened first.
set(SEQATTN_CUDA_INSTANCES)
foreach(dtype float16 bfloat16)
  foreach(head_dim 64 128 256)
    list(APPEND SEQATTN_CUDA_INSTANCES
      "fa2 ${dtype} ${head_dim} causal plain"
      "fa2 ${dtype} ${head_dim} causal general"
      "fa2 ${dtype} ${head_dim} none plain"
      "fa2 ${dtype} ${head_dim} none general"
      "fa2 ${dtype} ${head_dim} custom general"
      "fa3 ${dtype} ${head_dim} causal plain"
      "fa3 ${dtype} ${head_dim} causal general"
      "fa3 ${dtype} ${head_dim} none plain"
      "decode ${dtype} ${dtype} ${head_dim} 8"
      "decode ${dtype} float8_e4m3fn ${head_dim} 8")
    if(NOT head_dim EQUAL 256) # whose accumulators would not fit the registers
      list(APPEND SEQATTN_CUDA_INSTANCES
        "decode ${dtype} ${dtype} ${head_dim} 16"
        "decode ${dtype} float8_e4m3fn ${head_dim} 16")
    endif()
  endforeach()
endforeach()

# How the words of a line are spelled in C++.
set(fa2_type_of_float16 half)
set(fa2_type_of_bfloat16 nv_bfloat16)
set(decode_type_of_float16 __half)
set(decode_type_of_bfloat16 __nv_bfloat16)
set(decode_type_of_float8_e4m3fn Float8)
set(fa3_type_of_float16 cutlass::half_t)
set(fa3_type_of_bfloat16 cutlass::bfloat16_t)
set(dtype_name_of_float16 kFloat16)
set(dtype_name_of_bfloat16 kBFloat16)
set(dtype_name_of_float8_e4m3fn kFloat8E4M3)
set(mask_name_of_none kNone)
set(mask_name_of_causal kCausal)
set(mask_name_of_custom kCustom)
set(is_causal_none false)
set(is_causal_causal true)
set(is_general_plain false)
set(is_general_general true)

# seqattn_generate_instances(<folder> <with sm_90a> <variable for FA2 sources> <for FA3 sources> <for decode
# sources> <for tables>):
# a source for each FA2 instance; one for all FA3 instances of a dtype and head_dim, since CUTLASS's
# headers are most of their compile time; and the tables.
function(seqattn_generate_instances folder with_sm90a fa2_variable fa3_variable decode_variable tables_variable)
  set(fa2_sources)
  set(decode_sources)
  set(groups)
  foreach(line IN LISTS SEQATTN_CUDA_INSTANCES)
    separate_arguments(words UNIX_COMMAND "${line}")
    list(POP_FRONT words kind dtype)
    set(q_dtype ${dtype})
    if(kind STREQUAL "decode")
      list(POP_FRONT words dtype)
    endif()
    list(POP_FRONT words head_dim mask form)
    if(NOT head_dim MATCHES "^(64|128|256)$") # FlashInfer's FA2 compiles for 96, and then reads astray
      message(FATAL_ERROR "instances.cmake: got head_dim ${head_dim} in \"${line}\"; expected 64, 128 or 256")
    endif()
    set(dtype_name ${dtype_name_of_${dtype}})
    set(is_general ${is_general_${form}})
    if(kind STREQUAL "fa2")
      set(instance fa2_${dtype}_${head_dim}_${mask}_${form})
      set(fa2_type ${fa2_type_of_${dtype}})
      set(mask_name ${mask_name_of_${mask}})
      configure_file(templates/fa2_instance.cu.in ${folder}/${instance}.cu @ONLY)
      list(APPEND fa2_sources ${folder}/${instance}.cu)
      string(APPEND declarations "extern const Fa2Instance ${instance};\n")
      string(APPEND fa2_entries "      &${instance},\n")
    elseif(kind STREQUAL "decode")
      if(with_sm90a)
        set(instance decode_${q_dtype}_${dtype}_${head_dim}_${mask})
        math(EXPR row_blocks "${mask} / 8") # the word behind head_dim
        set(decode_q_type ${decode_type_of_${q_dtype}})
        set(decode_kv_type ${decode_type_of_${dtype}})
        set(q_dtype_name ${dtype_name_of_${q_dtype}})
        configure_file(templates/decode_instance.cu.in ${folder}/${instance}.cu @ONLY)
        list(APPEND decode_sources ${folder}/${instance}.cu)
        string(APPEND decode_declarations "extern const Instance ${instance};\n")
        string(APPEND decode_entries "${instance}, ")
      endif()
    elseif(with_sm90a)
      set(group fa3_${dtype}_${head_dim})
      list(APPEND groups ${group})
      string(APPEND entries_of_${group}
        "    fa3::make<${fa3_type_of_${dtype}}, ${head_dim}, ${is_causal_${mask}}, ${is_general}>(\n"
        "        DType::${dtype_name}),\n")
      math(EXPR size_of_${group} "0${size_of_${group}} + 1")
    endif()
  endforeach()
  set(fa3_sources)
  list(REMOVE_DUPLICATES groups)
  foreach(instance IN LISTS groups)
    set(fa3_entries "${entries_of_${instance}}")
    configure_file(templates/fa3_instances.cu.in ${folder}/${instance}.cu @ONLY)
    list(APPEND fa3_sources ${folder}/${instance}.cu)
    string(APPEND declarations "extern const Fa3Instance ${instance}[${size_of_${instance}}];\n")
    string(APPEND fa3_appends
      "    for (const Fa3Instance& instance : ${instance}) instances.push_back(instance);\n")
  endforeach()
  configure_file(templates/instance_tables.cc.in ${folder}/instance_tables.cc @ONLY)
  set(${fa2_variable} ${fa2_sources} PARENT_SCOPE)
  set(${fa3_variable} ${fa3_sources} PARENT_SCOPE)
  set(${decode_variable} ${decode_sources} PARENT_SCOPE)
  set(${tables_variable} ${folder}/instance_tables.cc PARENT_SCOPE)
endfunction()
