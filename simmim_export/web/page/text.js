// Texts to token ids, as simmim_export/runtime/text.py does it.

import { Tokenizer } from "./vendor/tokenizers.js";

// What Python's str.strip() removes.
const BLANK = /^[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*$/;
// Chinese characters that take two UTF-16 units, which the library does not recognize.
const WIDE_CHINESE = /[\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

export class TextError extends Error {}

export class Texts {
  // `json` is the content of tokenizer.json. `rules` come from site.json: the ids `before` and `after` each text, the id `pad`, the
  // limits `longest` (characters), `maxLength` and `shortest` (tokens, special tokens included).
  constructor(json, rules) {
    // The page adds special tokens itself, after a long text is cut.
    const empty = { normalizer: null, pre_tokenizer: null, added_tokens: [] };
    const parts = { ...empty, ...json, post_processor: null, decoder: null, padding: null, truncation: null };
    const model = parts.model;
    this.rules = rules;
    this.unknown = model.type === "Unigram" ? model.unk_id : model.vocab[model.unk_token];
    this.tokenizer = new Tokenizer(parts, {});
    const steps = [...flat(parts.normalizer, "normalizers"), ...flat(parts.pre_tokenizer, "pretokenizers")];
    this.lowers = steps.some((step) => step.type === "Lowercase" || (step.type === "BertNormalizer" && step.lowercase));
    this.spaces = steps.some((step) => step.type === "BertNormalizer" && step.handle_chinese_chars);
    this.splits = steps.some((step) => ["BertPreTokenizer", "WhitespaceSplit"].includes(step.type));
    this.cleans = steps.some((step) => step.type === "BertNormalizer" && step.clean_text);
  }

  // {ids, cut, unknown}: the row of a text with its special tokens, whether its end was cut off, and how many of its tokens the
  // model does not know. Throws a TextError for a text that runtime/text.py refuses.
  encode(text) {
    const { before, after, longest, maxLength } = this.rules;
    const length = [...text].length;
    if (length > longest) {
      throw new TextError(`The text has ${length.toLocaleString("en")} characters; the limit is ${longest.toLocaleString("en")}. Shorten it.`);
    }
    if (/\p{Cs}/u.test(text)) throw new TextError("The text is not valid Unicode. Type it again.");
    if (BLANK.test(text)) throw new TextError("The text is empty. Type one word or more.");
    const encoding = this.tokenizer.encode(this.prepared(text), { add_special_tokens: false });
    // The library gives no id to an unknown word of a model that is a list of words.
    const ids = encoding.ids.map((id) => id ?? this.unknown);
    if (ids.includes(undefined)) throw new TextError("The text has a word that the model does not know. Use other words.");
    if (ids.length === 0) throw new TextError("The text holds no word. Type one word or more.");
    const room = maxLength - before.length - after.length;
    const unknown = ids.filter((id) => id === this.unknown).length;
    return { ids: [...before, ...ids.slice(0, room), ...after], cut: ids.length > room, unknown };
  }

  // Where JavaScript and the original library, written in Rust, differ: the last sigma of a Greek word, and what counts as Chinese
  // and as a space.
  prepared(text) {
    if (this.lowers) text = text.replaceAll("\u03a3", "\u03c3");
    if (this.spaces) text = text.replace(WIDE_CHINESE, " $& ");
    if (this.splits && !this.cleans) text = text.replaceAll("\x85", " ").replaceAll("\ufeff", "\u2060");
    return text;
  }

  // Texts as two tensors, {ids, mask}, each {dtype, shape, data}; `notes` says in words what was lost. They are those from number
  // `first` on among the `of` texts that the user gave.
  batch(texts, { first, of }) {
    const rows = texts.map((text) => this.encode(text));
    const length = Math.max(this.rules.shortest, ...rows.map((row) => row.ids.length));
    const shape = [rows.length, length];
    const ids = new BigInt64Array(rows.length * length).fill(BigInt(this.rules.pad));
    const mask = new BigInt64Array(rows.length * length);
    rows.forEach((row, index) => {
      row.ids.forEach((id, place) => {
        ids[index * length + place] = BigInt(id);
        mask[index * length + place] = 1n;
      });
    });
    const notes = [];
    rows.forEach((row, index) => {
      const which = of > 1 ? `Text ${first + index + 1}` : "The text";
      if (row.cut) notes.push(`${which} was cut to the model's limit of ${this.rules.maxLength} tokens.`);
      if (row.unknown) notes.push(`${which} has ${row.unknown} ${row.unknown > 1 ? "words" : "word"} that the model does not know.`);
    });
    return { ids: { dtype: "int64", shape, data: ids }, mask: { dtype: "int64", shape, data: mask }, notes };
  }
}

function flat(part, name) {
  if (!part) return [];
  return part[name] ? part[name].flatMap((child) => flat(child, name)) : [part];
}
