import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  {
    languageOptions: { globals: globals.browser, ecmaVersion: 2023, sourceType: "module" },
    rules: { "max-lines": ["error", 300], eqeqeq: "error", "no-var": "error", "prefer-const": "error" },
  },
];
