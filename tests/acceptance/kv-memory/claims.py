"""Every card's claim of this family, run anew where its result is not of this claim; what each shows."""
import step


def body(s):
    rows = [8, 35, 50, 59, 72, 119, 127, 134, 145, 152, 209, 215]
    cards = {card["row"]: card for card in step.mneme_json("paper", "table") if card.get("row") in rows}
    for card in cards.values():
        if card["standing"] == "pending" or card.get("stale"):
            step.mneme("paper", "run", card["slug"], timeout=7200)
    cards = {card["row"]: card for card in step.mneme_json("paper", "table") if card.get("row") in rows}
    for row in rows:
        s.note(f"row {row}", f"{cards[row]['slug']}: {cards[row]['standing']}" if row in cards else "no card")
    s.at_least("claims shown", sum(card["standing"] == "shown" for card in cards.values()), 10)


if __name__ == "__main__":
    step.main(body)
