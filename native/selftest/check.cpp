#include "check.hpp"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace stretto::selftest {

uint64_t Random::bits() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

float Random::normal() {
    float sum = 0.0f;
    for (int i = 0; i < 6; ++i) sum += unit();
    return sum * 0.70710678f;  // six variances of a third each
}

std::string text(const char* format, ...) {
    char line[400];
    va_list values;
    va_start(values, format);
    std::vsnprintf(line, sizeof line, format, values);
    va_end(values);
    return line;
}

void Check::fail(const std::string& how) {
    if (failure.empty()) failure = about_ + ": " + how;
}

void Check::that(bool good, const char* expected) {
    ++count;
    if (!good) fail(std::string("expected ") + expected);
}

void Check::near(double got, double want, double allowed) {
    ++count;
    uint64_t bits = 0x7ff8000000000000;
    if (got == got) std::memcpy(&bits, &got, sizeof bits);
    take(bits);
    if (std::isnan(want) || std::isinf(want)) {
        if (std::isnan(want) ? !std::isnan(got) : got != want) fail(text("got %.9g, expected %.9g", got, want));
        return;
    }
    const double error = std::fabs(got - want);
    if (error > worst) worst = error;
    if (allowed > 0 && error / allowed > share) share = error / allowed;
    if (!(error <= allowed)) fail(text("got %.9g, expected %.9g within %.3g", got, want, allowed));
}

void Check::same(const float* got, const float* want, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
        uint32_t bits, wanted;
        std::memcpy(&bits, got + i, sizeof bits), std::memcpy(&wanted, want + i, sizeof wanted);
        const bool nan = got[i] != got[i];
        take(nan ? 0x7fc00000 : bits);
        ++count;
        if (bits != wanted && !(nan && want[i] != want[i]))
            fail(text("number %lld of %lld is %.9g (%08x), expected %.9g (%08x)", static_cast<long long>(i),
                      static_cast<long long>(size), static_cast<double>(got[i]), bits, static_cast<double>(want[i]),
                      wanted));
    }
}

void Check::same_bytes(const void* got, const void* want, size_t bytes) {
    const auto *a = static_cast<const unsigned char*>(got), *b = static_cast<const unsigned char*>(want);
    for (size_t i = 0; i < bytes; ++i) {
        take(a[i]);
        if (a[i] != b[i]) fail(text("byte %zu of %zu is %d, expected %d", i, bytes, a[i], b[i]));
    }
    count += static_cast<int64_t>(bytes);
}

bool Report::good() const {
    for (const Check& check : checks)
        if (!check.failure.empty()) return false;
    return true;
}

float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
    const uint32_t half = bits & 0xffff, whole = bits >> 16;
    const bool up = half > 0x8000 || (half == 0x8000 && (whole & 1));
    return static_cast<uint16_t>(whole + up);
}

double from_f16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -size : size;
}

}  // namespace stretto::selftest
