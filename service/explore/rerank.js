// Search results reranked for other weights from the breakdown of their scores, until the service responds.

// The contribution of a hit is weight x similarity / (sum of weights), where the similarity is already normalised.
function similarity({ contribution, weight }, sum) {
  return weight > 0 ? (contribution * sum) / weight : null;
}

// Returns the hits for the visual weight `w`, best first; null if these results are not sufficient to compute them.
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
