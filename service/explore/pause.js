// Pauses between two looks at the service, which can be cut short.

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
