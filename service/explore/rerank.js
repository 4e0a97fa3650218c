// An answer ordered for other weights, from what its hits say of themselves. The service's own order comes after it.

// A hit's contribution is weight x similarity / (sum of weights), the similarity already brought to one scale.
function similarity({ contribution, weight }, sum) {
  return weight > 0 ? (contribution * sum) / weight : null;
}

// Hits best first for the weight `w` of what is seen, or null where that cannot be known from this answer.
export function reranked({ items, weights }, w) {
  const sum = weights.video + weights.text;
  const made = items.map((hit) => {
    const seen = similarity(hit.breakdown.video, sum);
    const written = similarity(hit.breakdown.text, sum);
    if ((seen === null && w > 0) || (written === null && w < 1)) return null;
    const video = { ...hit.breakdown.video, weight: w, contribution: w * (seen ?? 0) };
    const text = { ...hit.breakdown.text, weight: 1 - w, contribution: (1 - w) * (written ?? 0) };
    return { ...hit, score: video.contribution + text.contribution, breakdown: { video, text } };
  });
  if (made.includes(null)) return null;
  return made.sort((one, other) => other.score - one.score);
}
