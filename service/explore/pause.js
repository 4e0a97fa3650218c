// Pauses between two requests of a poll; `wake` ends the current pause early.

export function pauses() {
  let end = () => {};
  return {
    wake: () => end(),
    pause: (milliseconds, signal) => {
      /** @type {Promise<void>} */
      const over = new Promise((resolve) => {
        const timer = setTimeout(resolve, milliseconds);
        end = () => {
          clearTimeout(timer);
          resolve();
        };
        signal?.addEventListener("abort", end, { once: true });
      });
      return over;
    },
  };
}
