// PTX text as tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lumos::ptxvm {

struct Token {
  enum class Kind : uint8_t {
    word,    // "ld", "%r1", "$L__BB0_1"
    dotted,  // ".global", ".L2::128B": a directive or a modifier
    number,  // "12", "0x1fU", "0f3F800000", "1.5e-3"; its sign is a mark
    string,  // with its quotes
    mark,    // one character
    end
  };
  Kind kind;
  int line;
  std::string_view text;

  bool is(std::string_view other) const { return text == other; }
};

struct Number {
  bool is_real = false;
  uint64_t integer = 0;
  double real = 0;
};

// Throws Error("PTX line 12: what").
[[noreturn]] void fail(int line, const std::string& what);

Number number_of(const Token& token);

// Reads tokens one after the other. The text must outlive it.
class Cursor {
 public:
  explicit Cursor(const std::string& text);

  const Token& peek(int ahead = 0) const;
  bool is(std::string_view text) const { return peek().is(text); }
  bool is_word() const { return peek().kind == Token::Kind::word; }
  bool is_dotted() const { return peek().kind == Token::Kind::dotted; }
  int line() const { return peek().line; }
  const Token& next();
  bool accept(std::string_view text);
  void expect(std::string_view text);
  std::string word();
  int integer();  // without a sign
  [[noreturn]] void unexpected(const char* wanted) const;

 private:
  std::vector<Token> tokens_;  // the last one is of Kind::end
  size_t position_ = 0;
};

}  // namespace lumos::ptxvm
