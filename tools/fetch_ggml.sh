#!/usr/bin/env bash
# fetch_ggml.sh: ggml, the peer of bench_cpu, out of llama-cpp-python's source package, built for this CPU: its headers
# and shared libraries lie in build/ggml afterwards. Does nothing where that version is there already.
source "$(dirname "$0")/common.sh"

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
prefix=$PWD/build/ggml
if [[ -f $prefix/version && $(<"$prefix/version") == "$version" ]]; then
  exit
fi

archive=$prefix/llama_cpp_python-$version.tar.gz
source_dir=$prefix/llama_cpp_python-$version/vendor/llama.cpp
mkdir -p "$prefix"
step ggml-fetch "fetching llama-cpp-python $version" "$python" -m pip download --disable-pip-version-check --no-input \
  --no-deps --no-binary llama-cpp-python --dest "$prefix" "llama-cpp-python==$version"
echo "$sha256  $archive" | sha256sum --check --quiet || die "$archive is not the file that is expected"
tar -xzf "$archive" -C "$prefix"
step ggml-configure "configuring ggml" cmake -S "$source_dir" -B "$prefix/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
step ggml-build "building ggml" cmake --build "$prefix/build" -j "$jobs" --target ggml-cpu
mkdir -p "$prefix/include" "$prefix/lib"
cp "$source_dir"/ggml/include/*.h "$prefix/include/"
cp -P "$prefix"/build/bin/libggml*.so* "$prefix/lib/"
rm -rf "$archive" "$prefix/build" "$prefix/llama_cpp_python-$version"
echo "$version" >"$prefix/version"
