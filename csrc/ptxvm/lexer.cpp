#include "ptxvm/lexer.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "ptxvm/fault.h"
#include "ptxvm/instruction.h"

namespace lumos::ptxvm {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$'; }
bool is_part(char c) { return is_letter(c) || is_digit(c); }

struct Lexer {
  const std::string& text;
  size_t at = 0;
  int line = 1;

  char character(size_t ahead = 0) const { return at + ahead < text.size() ? text[at + ahead] : '\0'; }

  // Moves to the first character that is neither space nor comment.
  void skip_space() {
    while (at < text.size()) {
      if (character() == '/' && character(1) == '/') {
        at = std::min(text.find('\n', at), text.size());
      } else if (character() == '/' && character(1) == '*') {
        const size_t end = text.find("*/", at + 2);
        if (end == std::string::npos) fail(line, "comment without end");
        line += static_cast<int>(std::count(text.begin() + at, text.begin() + end, '\n'));
        at = end + 2;
      } else if (character() == ' ' || (character() >= '\t' && character() <= '\r')) {
        line += character() == '\n';
        ++at;
      } else {
        return;
      }
    }
  }

  void skip_name() {
    while (is_part(character())) ++at;
  }

  void skip_number() {
    const char prefix = character() == '0' ? character(1) | 32 : 0;
    const bool is_hexadecimal = prefix == 'x' || prefix == 'f' || prefix == 'd';
    while (is_part(character()) || character() == '.') {
      const bool is_exponent = !is_hexadecimal && (character() | 32) == 'e';
      ++at;
      if (is_exponent && (character() == '+' || character() == '-')) ++at;
    }
  }

  void skip_string() {
    const int first_line = line;
    for (++at; character() != '"'; ++at) {
      at += character() == '\\';
      if (at >= text.size()) fail(first_line, "string without end");
      line += character() == '\n';
    }
    ++at;
  }

  Token next() {
    skip_space();
    const size_t begin = at;
    const int first_line = line;
    const char c = character();
    Token::Kind kind = Token::Kind::mark;
    if (at == text.size()) {
      kind = Token::Kind::end;
    } else if (is_letter(c) || c == '%') {
      kind = Token::Kind::word;
      ++at;
      skip_name();
    } else if (c == '.' && is_part(character(1))) {
      kind = Token::Kind::dotted;
      ++at;
      skip_name();
      for (; character() == ':' && character(1) == ':' && is_part(character(2)); skip_name()) at += 2;
    } else if (is_digit(c)) {
      kind = Token::Kind::number;
      skip_number();
    } else if (c == '"') {
      kind = Token::Kind::string;
      skip_string();
    } else if (c != '\0' && std::string_view("{}[]()<>,;:=+-!|@").find(c) != std::string_view::npos) {
      ++at;
    } else {
      fail(line, c > ' ' && c < '\x7f' ? format("unexpected character '%c'", c)
                                       : format("unexpected character \\x%02x", static_cast<unsigned char>(c)));
    }
    return {kind, first_line, std::string_view(text).substr(begin, at - begin)};
  }
};

template <class T, class... Base>
bool read_all(std::string_view digits, T* value, Base... base) {
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *value, base...);
  return error == std::errc() && end == digits.data() + digits.size();
}

}  // namespace

void fail(int line, const std::string& what) { throw Error(format("PTX line %d: %s", line, what.c_str())); }

Number number_of(const Token& token) {
  Number number;
  std::string_view digits = token.text;
  const auto reject = [&] { fail(token.line, "bad number '" + std::string(token.text) + "'"); };
  const char prefix = digits.size() > 2 && digits[0] == '0' ? digits[1] | 32 : 0;
  if (prefix == 'f' || prefix == 'd') {
    digits.remove_prefix(2);
    if (digits.size() != (prefix == 'f' ? 8 : 16) || !read_all(digits, &number.integer, 16)) reject();
    number.is_real = true;
    number.real =
        prefix == 'f' ? bits_as<float>(static_cast<uint32_t>(number.integer)) : bits_as<double>(number.integer);
    return number;
  }
  if (prefix != 'x' && digits.find_first_of(".eE") != std::string_view::npos) {
    number.is_real = true;
    if (!read_all(digits, &number.real)) reject();
    return number;
  }
  if (digits.back() == 'U') digits.remove_suffix(1);
  const bool is_octal = digits.size() > 1 && digits[0] == '0' && is_digit(digits[1]);
  const int base = prefix == 'x' ? 16 : prefix == 'b' ? 2 : is_octal ? 8 : 10;
  if (base == 16 || base == 2) digits.remove_prefix(2);
  if (!read_all(digits, &number.integer, base)) reject();
  return number;
}

Cursor::Cursor(const std::string& text) {
  Lexer lexer{text};
  do {
    tokens_.push_back(lexer.next());
  } while (tokens_.back().kind != Token::Kind::end);
}

const Token& Cursor::peek(int ahead) const { return tokens_[std::min(position_ + ahead, tokens_.size() - 1)]; }

const Token& Cursor::next() {
  if (peek().kind == Token::Kind::end) fail(line(), "the text ends too early");
  return tokens_[position_++];
}

bool Cursor::accept(std::string_view text) {
  const bool found = is(text);
  position_ += found;
  return found;
}

void Cursor::expect(std::string_view text) {
  if (!accept(text)) unexpected(("'" + std::string(text) + "'").c_str());
}

std::string Cursor::word() {
  if (!is_word()) unexpected("a name");
  return std::string(next().text);
}

int Cursor::integer() {
  if (peek().kind != Token::Kind::number) unexpected("a number");
  const Token& token = next();
  const Number number = number_of(token);
  constexpr int kLargest = std::numeric_limits<int>::max();
  if (number.is_real || number.integer > kLargest) {
    fail(token.line, format("a whole number of at most %d is needed", kLargest));
  }
  return static_cast<int>(number.integer);
}

void Cursor::unexpected(const char* wanted) const {
  const Token& found = peek();
  if (found.kind == Token::Kind::end) fail(found.line, format("the text ends where %s is needed", wanted));
  const std::string what = found.kind == Token::Kind::string ? "a string" : "'" + std::string(found.text) + "'";
  fail(found.line, format("%s where %s is needed", what.c_str(), wanted));
}

}  // namespace lumos::ptxvm
