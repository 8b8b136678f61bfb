# libtorch comes from the Python wheel; everything else from Debian packages (scripts/debian-packages.txt).
if(NOT MNEME_PYTHON)
  set(MNEME_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python)
endif()
# Not find_package(Torch): with a CUDA wheel that asks for the CUDA toolkit, which a program without CUDA sources of its
# own does not need.
execute_process(COMMAND ${MNEME_PYTHON} -c
  "import os, torch; print(torch.__version__.split('+')[0], os.path.dirname(torch.__file__), torch.version.cuda or '', sep=';')"
  OUTPUT_VARIABLE torch_found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE torch_missing)
if(torch_missing)
  message(FATAL_ERROR "no torch in ${MNEME_PYTHON}: run `make setup`, or set MNEME_PYTHON to a Python that has torch 2.11-2.13")
endif()
list(GET torch_found 0 torch_version)
list(GET torch_found 1 torch_folder)
list(GET torch_found 2 torch_cuda)
if(torch_version VERSION_LESS 2.11 OR torch_version VERSION_GREATER_EQUAL 2.14)
  message(FATAL_ERROR "torch ${torch_version} is not supported: 2.11 to 2.13 are")
endif()
message(STATUS "Found torch ${torch_version} in ${torch_folder}")
# Searched last: the wheel also carries headers of fmt, protobuf and others, of versions other than the linked ones.
foreach(folder include include/torch/csrc/api/include)
  add_compile_options("SHELL:-idirafter ${torch_folder}/${folder}")
endforeach()
# libtorch.so has no symbols of its own: it brings the backends in, and must not be dropped as unneeded.
# One item, since CMake reorders and merges several.
set(TORCH_LIBRARIES -Wl,--push-state,--no-as-needed,${torch_folder}/lib/libtorch.so,--pop-state
                    ${torch_folder}/lib/libtorch_cpu.so ${torch_folder}/lib/libc10.so)
if(torch_cuda)
  list(APPEND TORCH_LIBRARIES ${torch_folder}/lib/libc10_cuda.so)
  add_link_options(-Wl,--allow-shlib-undefined)  # the wheel's CUDA libraries find theirs when they are loaded
endif()
add_compile_options(-fopenmp)
add_link_options(-fopenmp)

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(SQLITE3 REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)
pkg_check_modules(ICU REQUIRED IMPORTED_TARGET icu-uc)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto)
find_library(FAISS_LIBRARY faiss REQUIRED)
find_package(BLAS REQUIRED)
find_package(LAPACK REQUIRED)
