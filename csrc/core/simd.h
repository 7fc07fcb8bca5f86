// Which instruction set the inner loops use: chosen once, when the module is loaded.
#pragma once

#include <string>
#include <vector>

namespace pyalign {

enum class Simd { portable = 0, avx2 = 1, avx512 = 2 };

// The widest path that this machine and this build have.
Simd best_simd();
// The path in use: the best one, unless set_simd chose another that the machine has.
Simd simd();
bool set_simd(const std::string& name);
const char* name_of(Simd path);
std::vector<std::string> simd_paths();

}  // namespace pyalign
