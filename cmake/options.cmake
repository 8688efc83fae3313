# The compile options that every target of the project shares; none of them reaches a consumer.
add_library(seqattn_options INTERFACE)
target_compile_options(seqattn_options INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wundef)
# SVE's vectors have no size at compile time, which arrays of them need: on Arm the kernels are NEON's.
target_compile_definitions(seqattn_options INTERFACE "HWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
if(SEQATTN_WERROR)
  target_compile_options(seqattn_options INTERFACE -Werror)
endif()
if(SEQATTN_SANITIZE)
  target_compile_options(seqattn_options INTERFACE -fsanitize=${SEQATTN_SANITIZE} -fno-omit-frame-pointer
                                                   -fno-sanitize-recover=all)
  target_link_options(seqattn_options INTERFACE -fsanitize=${SEQATTN_SANITIZE})
endif()
