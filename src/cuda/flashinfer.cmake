# Where FlashInfer's headers are: SEQATTN_FLASHINFER_DIR, or the pinned wheel of the package
# flashinfer-python, used as an archive of headers (no import, no installation) and unpacked below the
# build folder. It carries the CUTLASS and CCCL headers that it needs.
set(SEQATTN_FLASHINFER_DIR "" CACHE PATH
  "A folder with include/flashinfer, cutlass and cccl, as flashinfer/data of the wheel; empty: fetch the wheel")

set(flashinfer_dir ${SEQATTN_FLASHINFER_DIR})
if(NOT flashinfer_dir)
  set(wheel_dir ${PROJECT_BINARY_DIR}/flashinfer)
  set(flashinfer_dir ${wheel_dir}/flashinfer/data)
  file(MD5 ${CMAKE_CURRENT_SOURCE_DIR}/flashinfer.txt pin)
  if(NOT EXISTS ${wheel_dir}/unpacked-${pin})
    message(STATUS "Fetching the headers of FlashInfer")
    file(REMOVE_RECURSE ${wheel_dir})
    file(MAKE_DIRECTORY ${wheel_dir})
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -m pip download --disable-pip-version-check --no-input --quiet --no-deps
              --require-hashes --requirement ${CMAKE_CURRENT_SOURCE_DIR}/flashinfer.txt --dest ${wheel_dir}
      RESULT_VARIABLE status ERROR_VARIABLE text)
    if(NOT status EQUAL 0)
      message(FATAL_ERROR "FlashInfer's headers cannot be fetched with pip: ${text}\n"
        "Point SEQATTN_FLASHINFER_DIR at the folder flashinfer/data of an unpacked wheel "
        "(src/cuda/flashinfer.txt names it), or configure with SEQATTN_CUDA=OFF.")
    endif()
    file(GLOB wheel ${wheel_dir}/*.whl)
    file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${wheel_dir} PATTERNS "flashinfer/data/include/*"
         "flashinfer/data/cutlass/include/*" "flashinfer/data/cccl/*" "*.dist-info/licenses/*")
    file(REMOVE ${wheel})
    file(TOUCH ${wheel_dir}/unpacked-${pin})
  endif()
endif()
if(NOT EXISTS ${flashinfer_dir}/include/flashinfer/attention/prefill.cuh)
  message(FATAL_ERROR "SEQATTN_FLASHINFER_DIR is ${flashinfer_dir}, which has no include/flashinfer/attention/prefill.cuh")
endif()
set(SEQATTN_FLASHINFER_INCLUDE_DIRS
  ${flashinfer_dir}/include
  ${flashinfer_dir}/cutlass/include
  ${flashinfer_dir}/cccl/libcudacxx/include
  ${flashinfer_dir}/cccl/cub
  ${flashinfer_dir}/cccl/thrust)
