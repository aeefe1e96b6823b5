"""Marketing texts in more than a dozen languages, in which the URLs are marked as a person would mark them.

⟦ and ⟧ enclose each URL that the track mode `all_urls` must detect. A text without these brackets contains no URL. The texts were
written for these tests. All hosts are reserved names, or names that only the tests use.
"""

MARKETING_TEXTS = """
Hi Anna, your order has shipped. Track it here: ⟦https://parcel.example/t/8Kd2⟧
FLASH SALE 🔥 50% off everything today only! ⟦https://shop.example/sale⟧🔥
Shop now 👉⟦https://shop.example/new⟧👈 Reply STOP to opt out
Your table is booked for 7pm. Change it: ⟦https://book.example/r?id=77&t=a1⟧. See you soon!
Last chance! ⟦https://shop.example/a⟧✅ free delivery
New drop👟⟦https://kicks.example/drop-7⟧⚡️only 24h
⟦https://shop.example/spring⟧ – ends Sunday
Ends Sunday–⟦https://shop.example/spring⟧–don't miss it
Sale•⟦https://shop.example/a⟧•⟦https://shop.example/b⟧
Win a trip → ⟦https://win.example/?c=sms⟧→enter now
Your code is 482913. Never share it. Help: ⟦https://bank.example/help⟧
Dear customer, verify at (⟦https://bank.example/v_(2)⟧). Do not reply.
"⟦https://shop.example/quoted⟧" is our new address
‘⟦https://shop.example/q⟧’ she said
Visit ⟦acme.shop⟧ today for 20% off
Order online: ⟦acme.io⟧
More at ⟦acme.store⟧!
Book now at ⟦spa-day.co.uk⟧ or call 020 7946 0000
Text STOP to 60777. ⟦www.acme.example.com/sms⟧
Download our app: ⟦https://acme.app/get⟧
Download the app on ⟦acme.app⟧
Your bill is ready, see ⟦mybill.com⟧.
Get it from ⟦bit.ly/3xYz9⟧ now
T-shirts £5,hoodies £9:⟦https://shop.example/m⟧;offer ends 9pm
Tix at ⟦https://gig.example/e/12?src=sms&utm_source=txt#seats⟧
Rate us 1️⃣⟦https://rate.example/1⟧ 2️⃣⟦https://rate.example/2⟧
50% off ⟦https://shop.example/a50⟧1️⃣ day only
Kids eat free*⟦https://diner.example/kids⟧*T&Cs apply
Check your men’s sizes ⟦https://shop.example/men’s-shoes⟧
Route: ⟦https://maps.example/?m=color:red|1,2⟧
Compare ⟦https://shop.example/x?f=a|b&g=1⟧ now
Link|⟦https://shop.example/x⟧|Code SMS10
Get 10% at ⟦https://shop.example/x⟧…while stocks last
Reply YES. ⟦https://shop.example/a⟧.Reply STOP to end
Hurry:⟦https://shop.example/a⟧!Hurry up
See terms[⟦https://shop.example/terms⟧]
Pay here: https://user:pw@pay.example/ (never do this)
Broken: https://https://shop.example/x
Broken: http://shop.example:99999/www.acme.com
Our office http://intranet/wiki only
Meet us at home.be good
Thanks for your order.so happy to have you
We are open.now is the time
Email info@acme.com or sales@acme.co.uk
Follow @acme.com on social
V2.0.1 of the app is out, size 10.5MB, released 20.11.2026
Total £1.50, was $9.99. 7.30pm sharp
Deal of the day: ⟦https://shop.example/deals⟧€5 only
Neu bei uns: ⟦https://laden.example/neu⟧ – jetzt entdecken!
Jetzt 20% sparen👉⟦https://laden.example/sale⟧
Ihr Paket kommt heute. Verfolgen: ⟦https://paket.example/größe?id=9⟧
Mehr auf ⟦mode-haus.de⟧, Ihr Team
Abmelden: ⟦https://laden.example/abmelden?k=Äpfel⟧
Besuchen Sie uns auf ⟦www.bücherwelt.de⟧!
„⟦https://laden.example/aktion⟧“ – nur heute
Rabatt»⟦https://laden.example/r⟧«
Gutschein GRÜN10 einlösen: ⟦https://laden.example⟧.
Termin bestätigen ⟦https://arzt.example/t/5⟧- Ihre Praxis
Soldes ! ⟦https://boutique.example/soldes-été⟧ jusqu’à dimanche
Profitez-en sur ⟦boutique.fr⟧ !
Votre colis arrive : ⟦https://colis.example/s/été⟧. Merci
« ⟦https://boutique.example/promo⟧ » code PROMO
Livraison offerte ➡️⟦https://boutique.example/l⟧⬅️
STOP au 36111 ⟦https://boutique.example/c?n=élodie&p=1⟧
¡Rebajas! ¡⟦https://tienda.example/rebajas⟧!
¿Ya lo viste? ⟦https://tienda.example/niños⟧ ¡Corre!
Tu pedido está en camino: ⟦https://tienda.example/p/año-2026⟧
Entra en ⟦mango.es⟧.
Visita ⟦zara-outlet.es⟧ antes del domingo
Estoy en casa.es bonito
Cita el 5/12, confirma aquí⟶⟦https://cita.example/c⟧
Saldi fino al 70%! ⟦https://negozio.example/saldi⟧ 🎉
Scopri di più su ⟦negozio.it⟧!
Il tuo ordine è pronto: ⟦https://negozio.example/ordine?città=Forlì⟧
Promoção! ⟦https://loja.example/promoção⟧ só hoje
Acesse ⟦loja.com.br⟧ e ganhe frete grátis
Seu código: 1234. ⟦https://loja.example/não-perca⟧.
Uitverkoop ⟦https://winkel.example/uitverkoop⟧ t/m zondag
Kijk op ⟦winkel.nl⟧ voor meer
REA på ⟦butik.se⟧!
Din leverans: ⟦https://butik.example/å/ä/ö⟧ Hälsningar
Tilbud👇⟦https://butik.example/tilbud⟧
Alennus: ⟦https://kauppa.example/ale?väri=sininen⟧
Wyprzedaż! ⟦https://sklep.example/wyprzedaż⟧, tylko dziś
Zobacz: ⟦sklep.pl⟧ – do -70%
Sleva 20 %: ⟦https://obchod.example/sleva⟧. Těšíme se
Akció! ⟦https://bolt.example/akció⟧ csak ma
Reducere azi: ⟦https://magazin.example/reduceri⟧;cod SMS
İndirim başladı: ⟦https://magaza.example/indirim⟧ Hemen al
Kampanya👉⟦magaza.com.tr⟧👈
Giảm giá 50%: ⟦https://cuahang.example/giảm-giá⟧ hôm nay
Diskon! Kunjungi ⟦toko.co.id⟧ sekarang
Promo: ⟦https://toko.example/p⟧(s/d 30 Nov)
Скидки до 70%! ⟦https://magazin.example/skidki⟧ – только сегодня
Ваш заказ: ⟦https://magazin.example/заказ/15⟧. Спасибо!
⟦https://magazin.example/x⟧Спасибо за покупку
Подробнее на сайте ⟦магазин.рф⟧!
«⟦https://magazin.example/akcia⟧» №1 в городе
Звоните.да или пишите
Знижки: ⟦https://kramnyca.example/знижки⟧, до неділі
Отстъпка: ⟦https://magazin.example/b⟧—само днес
Προσφορά: ⟦https://katastima.example/προσφορά⟧· μόνο σήμερα
Εκπτώσεις ⟦https://katastima.example/x⟧;Δείτε τώρα
تخفيضات كبيرة ⟦https://souq.example/sale⟧، لا تفوتها
هل رأيت العرض ⟦https://souq.example/a⟧؟
⟦https://souq.example/x⟧اضغط هنا
تابع طلبك: ⟦https://souq.example/طلب⟧ شكرا
زوروا ⟦https://souq.example/a⟧؛ العرض محدود
تخفیف ویژه ⟦https://forush.example/می‌شود⟧ همین حالا
خصوصی رعایت ⟦https://dukan.example/a⟧۔ آج ہی
מבצע! ⟦https://hanut.example/sale⟧ עד מחר
בקרו ב-⟦hanut.co.il/sale⟧
ההזמנה: ⟦https://hanut.example/הזמנה⟧.
आज ही खरीदें ⟦https://dukan.example/x⟧। धन्यवाद
छूट: ⟦https://dukan.example/छूट⟧ जल्दी करें
ছাড়: ⟦https://dokan.example/a⟧।
தள்ளுபடி ⟦https://kadai.example/x⟧ இன்று
詳しくは⟦https://mise.example/x⟧をご覧ください
セール開催中！⟦https://mise.example/sale⟧。お急ぎください
【本日限定】⟦https://mise.example/today⟧【50%OFF】
「⟦https://mise.example/a⟧」をチェック
⟦https://mise.example/⟧で検索
会員ページ：⟦https://mise.example/会員⟧ までどうぞ
配送状況→⟦https://mise.example/t?no=12⟧（無料）
⟦https://mise.example/b1⟧・⟦https://mise.example/b2⟧
アプリは⟦www.mise.jp⟧へ
点击⟦https://dian.example/abc⟧领取优惠券
【品牌】尊敬的客户，请访问⟦https://dian.example/x1⟧，回复TD退订
下载⟦https://dian.example/安装包⟧（正式版）
活动页：⟦https://dian.example/活动/双十一⟧ 速来
⟦https://dian.example/a⟧！数量有限
優惠👉⟦https://dim.example/hk⟧👈立即選購
查詢請到⟦dim.com.hk⟧。
지금 확인 ⟦https://gage.example/sale⟧에서 만나요
배송조회 ⟦https://gage.example/t/1⟧입니다
(광고) ⟦https://gage.example/event⟧ 무료거부 080-000-0000
⟦https://gage.example/⟧에서 확인하세요
이벤트: ⟦https://gage.example/이벤트⟧ 참여
ลดราคา ⟦https://ran.example/sale⟧ วันนี้เท่านั้น
คลิก⟦https://ran.example/x⟧ดูที่นี่
ດຽວນີ້⟦https://han.example/a⟧ເບິ່ງ
ចុច⟦https://hang.example/k⟧ឥឡូវ
""".strip().splitlines()
